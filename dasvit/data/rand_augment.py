"""RandAugment (Cubuk et al., 2020) for a batch on its device: every image draws for itself.

torchvision's transform draws once for whatever it is given, so a batch would be turned by one
angle. Here the images that drew the same operation are treated together, each with its own sign;
operations, magnitudes and their order of application are torchvision's, which the tests compare
with, operation by operation.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from dasvit.data.batch import send

__all__ = ["OPERATIONS", "apply_operation", "rand_augment"]

NUM_BINS = 31
"""Magnitudes are steps of 0 to 30."""

Images = Float[Tensor, "batch channels height width"]


def rand_augment(
    images: UInt8[Tensor, "batch channels height width"],
    draw: torch.Generator,
    *,
    num_ops: int = 2,
    magnitude: int = 9,
) -> UInt8[Tensor, "batch channels height width"]:
    """Each image through `num_ops` operations that it draws.

    Args:
        images: on any device.
        draw: on the CPU, so that all devices see the same draws and none is waited for.
        num_ops: operations an image.
        magnitude: 0 to 30.
    """
    names = list(OPERATIONS)
    out = images.clone()
    for _ in range(num_ops):
        which = torch.randint(len(names), (len(images),), generator=draw)
        signs = torch.randint(0, 2, (len(images),), generator=draw) * 2.0 - 1.0
        order = which.argsort(stable=True)
        counts = which.bincount(minlength=len(names)).tolist()
        places, signs = (send(values, out.device).split(counts) for values in (order, signs[order]))
        for name, place, sign in zip(names, places, signs, strict=True):
            if len(place):
                out[place] = apply_operation(name, out[place], sign, magnitude)
    return out


def apply_operation(
    name: str,
    images: UInt8[Tensor, "batch channels height width"],
    sign: Float[Tensor, " batch"],
    magnitude: int,
) -> UInt8[Tensor, "batch channels height width"]:
    """One operation on a batch; `sign` (-1 or 1) is of operations that go both ways."""
    level = magnitude / (NUM_BINS - 1)
    out = OPERATIONS[name](images.float(), sign.view(-1, 1, 1, 1), level)
    return out.clamp_(0, 255).to(torch.uint8)


def _warp(images: Images, linear: Tensor, shift: Tensor) -> Images:
    """Each output pixel from the nearest input pixel; outside of the image is black.

    Args:
        linear: (batch, 2, 2), from output to input positions around the image's centre, in pixels.
        shift: (batch, 2), added in the input, in pixels, x and y.
    """
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) - (height - 1) / 2,
        torch.arange(width, device=images.device) - (width - 1) / 2,
        indexing="ij",
    )
    grid = torch.stack([x, y], dim=-1) @ linear[:, None].transpose(-1, -2) + shift[:, None, None]
    grid = torch.stack([2 * grid[..., 0] / width, 2 * grid[..., 1] / height], dim=-1)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def _shear(images: Images, sign: Tensor, level: float, *, axis: int) -> Images:
    # The edge of the image at coordinate 0 stays in place.
    amount = sign.flatten() * 0.3 * level
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    height, width = images.shape[-2:]
    if axis == 0:
        shift = torch.stack([amount * height / 2, zero], -1)
        return _warp(images, _matrix(one, amount, zero, one), shift)
    shift = torch.stack([zero, amount * width / 2], -1)
    return _warp(images, _matrix(one, zero, amount, one), shift)


def _translate(images: Images, sign: Tensor, level: float, *, axis: int) -> Images:
    height, width = images.shape[-2:]
    pixels = int(150.0 / 331.0 * (width, height)[axis] * level)
    amount = -sign.flatten() * pixels
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    shift = torch.stack([amount, zero] if axis == 0 else [zero, amount], -1)
    return _warp(images, _matrix(one, zero, zero, one), shift)


def _rotate(images: Images, sign: Tensor, level: float) -> Images:
    angle = sign.flatten() * math.radians(30.0 * level)
    cos, sin = angle.cos(), angle.sin()
    return _warp(images, _matrix(cos, -sin, sin, cos), images.new_zeros(len(images), 2))


def _blend(images: Images, other: Images, sign: Tensor, level: float) -> Images:
    """`other` at factor 0, the image at 1."""
    factor = 1.0 + sign * 0.9 * level
    return (images * factor + other * (1.0 - factor)).clamp(0, 255)


def _grey(images: Images) -> Images:
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()


def _brightness(images: Images, sign: Tensor, level: float) -> Images:
    return _blend(images, torch.zeros_like(images), sign, level)


def _color(images: Images, sign: Tensor, level: float) -> Images:
    if images.shape[1] == 1:
        return images
    return _blend(images, _grey(images).expand_as(images), sign, level)


def _contrast(images: Images, sign: Tensor, level: float) -> Images:
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean.expand_as(images), sign, level)


def _sharpness(images: Images, sign: Tensor, level: float) -> Images:
    if min(images.shape[-2:]) <= 2:
        return images
    channels = images.shape[1]
    kernel = images.new_ones(3, 3)
    kernel[1, 1] = 5.0
    kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel, groups=channels).round()
    return _blend(images, smooth, sign, level)


def _posterize(images: Images, sign: Tensor, level: float) -> Images:
    step = 2 ** round(4 * level)  # 8 bits at level 0, 4 at level 1
    return (images / step).floor() * step


def _solarize(images: Images, sign: Tensor, level: float) -> Images:
    return torch.where(images >= 255.0 * (1.0 - level), 255.0 - images, images)


def _auto_contrast(images: Images, sign: Tensor, level: float) -> Images:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, 255.0 / (high - low).clamp(min=1.0))
    return torch.where(flat, images, (images - low) * scale)


def _equalize(images: Images, sign: Tensor, level: float) -> Images:
    batch, channels, height, width = images.shape
    values = images.reshape(batch * channels, -1).long()
    counts = torch.zeros(batch * channels, 256, device=images.device, dtype=torch.long)
    counts.scatter_add_(1, values, torch.ones_like(values))
    total = counts.cumsum(dim=1)
    pixels = height * width
    last = counts.gather(1, values.amax(dim=1, keepdim=True))  # of the brightest value present
    step = (pixels - last).div(255, rounding_mode="floor")  # (batch · channels, 1)
    before = total - counts
    table = (before + step.div(2, rounding_mode="floor")).div(
        step.clamp(min=1), rounding_mode="floor"
    )
    out = table.clamp(0, 255).gather(1, values)
    return torch.where(step == 0, values, out).view_as(images).to(images.dtype)


OPERATIONS: dict[str, Callable[[Images, Tensor, float], Images]] = {
    "Identity": lambda images, sign, level: images,
    "ShearX": lambda images, sign, level: _shear(images, sign, level, axis=0),
    "ShearY": lambda images, sign, level: _shear(images, sign, level, axis=1),
    "TranslateX": lambda images, sign, level: _translate(images, sign, level, axis=0),
    "TranslateY": lambda images, sign, level: _translate(images, sign, level, axis=1),
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
"""By torchvision's names: of float images with values 0 to 255, signs (batch, 1, 1, 1) and a level
in [0, 1]."""
