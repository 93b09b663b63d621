"""From a decoded image to pixels of the size and the channels a network takes."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

__all__ = ["square_pixels"]


def square_pixels(
    image: Image.Image, channels: int, size: int | None
) -> UInt8[Tensor, "channels height width"]:
    """The image as uint8.

    Args:
        image: of any size and mode; transparency is dropped, 16 bits a pixel become 8.
        channels: 1 for grey, 3 for RGB.
        size: side in pixels: the shorter side is resized to it and the middle cut out. None
            leaves the size as it is.
    """
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    pixels = F.pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))
    if size is None or pixels.shape[-2:] == (size, size):
        return pixels
    pixels = F.resize(pixels, [size], antialias=True)
    return F.center_crop(pixels, [size, size]).to(torch.uint8)
