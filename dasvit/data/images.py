"""Image files, decoded and cut to the size and the channels that a network takes."""

from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from dasvit.run.files import first_line

__all__ = ["open_image", "read_images", "square_pixels"]

T = TypeVar("T")

_THREADS = 8
_GREY_MODES = ("1", "L", "LA", "La")
_LONGEST = 8  # sides of an image that is resized before its middle is cut out


def open_image(path: str) -> Image.Image:
    """The decoded image, turned as its EXIF data say, in mode L (grey) or RGB. Transparency is
    dropped, 16 bits per pixel become 8.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _plain(ImageOps.exif_transpose(image))
    except Exception as error:  # bytes that are no image fail in any way
        raise OSError(f"{path} is not a readable image ({first_line(error)})") from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        deep = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(np.rint(deep).clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # palettes with transparency warn when they lose it at once
        image = image.convert("RGBA")
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def square_pixels(
    image: Image.Image, channels: int | None, size: int | None
) -> UInt8[Tensor, "channels height width"]:
    """The pixels of an opened image.

    Args:
        image: from `open_image`.
        channels: 1 for grey, 3 for RGB, None for the image's own.
        size: side of the square in pixels: the shorter side is resized to it and the middle cut
            out. None leaves the image as it is.
    """
    pixels = V.pil_to_tensor(image.convert({1: "L", 3: "RGB"}.get(channels or 0)))
    if size is None or pixels.shape[-2:] == (size, size):
        return pixels
    reach = _LONGEST * min(image.size)
    if max(image.size) > reach:  # of a long strip only the middle counts
        pixels = V.center_crop(pixels, [min(side, reach) for side in pixels.shape[-2:]])
    return V.center_crop(V.resize(pixels, [size], antialias=True), [size, size])


def read_images(
    function: Callable[[Image.Image], T], paths: Iterable[str]
) -> tuple[dict[str, T], dict[str, str]]:
    """`function` of every image, by path and several threads; and of those that cannot be read,
    why."""

    def one(path: str) -> tuple[str, T | None, str]:
        try:
            return path, function(open_image(path)), ""
        except Exception as error:  # as in `open_image`
            return path, None, first_line(error)

    done: dict[str, T] = {}
    bad: dict[str, str] = {}
    with ThreadPool(_THREADS) as pool:
        for path, result, why in pool.imap(one, paths, chunksize=64):
            if result is None:
                bad[path] = why
            else:
                done[path] = result
    return done, bad
