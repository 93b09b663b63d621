"""From a decoded image to pixels of the size and the channels a network takes."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

__all__ = ["pixels_of", "square_pixels"]


def pixels_of(image: Image.Image, channels: int) -> UInt8[Tensor, "channels height width"]:
    """The image as uint8, of its own size.

    Args:
        image: of any mode; transparency is dropped, 16 bits a pixel become 8.
        channels: 1 for grey, 3 for RGB.
    """
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        deep = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(np.rint(deep).clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # palettes with transparency warn when they lose it at once
        image = image.convert("RGBA")
    return F.pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))


def square_pixels(
    image: Image.Image, channels: int, size: int | None
) -> UInt8[Tensor, "channels height width"]:
    """The image as uint8, cut to a square.

    Args:
        image, channels: as in `pixels_of`.
        size: side in pixels: the shorter side is resized to it and the middle cut out. None
            leaves the image as it is.
    """
    pixels = pixels_of(image, channels)
    if size is None or pixels.shape[-2:] == (size, size):
        return pixels
    pixels = F.resize(pixels, [size], antialias=True)
    return F.center_crop(pixels, [size, size]).to(torch.uint8)
