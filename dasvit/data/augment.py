"""Augmentation of a batch on its device: every image draws for itself.

torchvision's v2 transforms draw once per call. Called image by image they took 18 times as long for
crop and flip and 13 times for RandAugment (128 images of 28 px, one thread; alike at 224 px), and
they wait for a GPU. So the draws are made here, for a whole batch on the CPU; the work is done by
torchvision's functions, and no GPU is waited for.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from dasvit.data.batch import send

__all__ = ["OPERATIONS", "Draws", "apply_operation", "augment", "cut_box", "draw_augmentation"]

Images = UInt8[Tensor, "batch channels height width"]
Draws = dict[str, Tensor]
"""What the images of a batch drew, one row per image: `offset` in pixels, `box` as in `cut_box`,
`mirror`, `operations` (number and sign of each of RandAugment's)."""

_AREA, _LOG_RATIO, _TRIES = (0.08, 1.0), math.log(4 / 3), 10  # v2.RandomResizedCrop's
_RAND_AUGMENT = v2.RandAugment()  # two operations per image, magnitude 9 of 0 to 30
OPERATIONS = tuple(_RAND_AUGMENT._AUGMENTATION_SPACE)
"""RandAugment's (Cubuk et al., 2020), by torchvision's names."""
_SIGNED = torch.tensor([signed for _, signed in _RAND_AUGMENT._AUGMENTATION_SPACE.values()])
_WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def draw_augmentation(kind: str, batch: int, side: int, generator: torch.Generator) -> Draws:
    """What a batch draws.

    Args:
        kind: as `DataConfig.augment`.
        batch: number of images.
        side: of the images, in pixels.
        generator: on the CPU; equal states give equal draws.
    """
    if kind == "none":
        return {}
    if kind == "resized_crop":
        numbers = torch.rand(batch, 3 + 2 * _TRIES, generator=generator)
        return {"mirror": numbers[:, 0] < 0.5, "box": numbers[:, 1:]}
    reach = max(1, side // 8)
    draws = {"offset": torch.randint(0, 2 * reach + 1, (2, batch), generator=generator).T}
    if kind != "shift":
        draws["mirror"] = torch.rand(batch, generator=generator) < 0.5
    if kind == "rand":
        limits = (len(OPERATIONS), 2) * _RAND_AUGMENT.num_ops
        drawn = [torch.randint(limit, (batch,), generator=generator) for limit in limits]
        draws["operations"] = torch.stack(drawn, 1).view(batch, -1, 2)
    return draws


def augment(images: Images, draws: Draws) -> Images:
    """The images as their draws say, of the same size."""
    if "offset" in draws:
        images = _shift(images, draws["offset"])
    if "box" in draws:
        pairs = zip(images, draws["box"].tolist(), strict=True)
        images = torch.stack([cut_box(image, box, images.shape[-1]) for image, box in pairs])
    if "mirror" in draws:
        mirror = send(draws["mirror"], images.device).view(-1, 1, 1, 1)
        images = torch.where(mirror, images.flip(3), images)
    if "operations" in draws:
        for operations in draws["operations"].unbind(1):
            images = _rand_augment(images, operations)
    return images


def _shift(images: Images, offset: Int[Tensor, "batch 2"]) -> Images:
    """Translation by up to an eighth of the side; zeros come in."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (max(1, height // 8),) * 4)
    return torch.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, (top, left) in zip(padded, offset.tolist(), strict=True)
        ]
    )


def cut_box(
    image: UInt8[Tensor, "channels height width"], box: Sequence[float], size: int
) -> UInt8[Tensor, "channels size size"]:
    """A part of 8 to 100 % of the area and 3/4 to 4/3 of the ratio, resized to a square: the usual
    crop of training on ImageNet, spread as v2.RandomResizedCrop's.

    Args:
        box: place from the left and from the top, then area and ratio until they fit into the
            image, all in [0, 1). If none does, what sticks out is cut off.
    """
    height, width = image.shape[-2:]
    tall = wide = 0
    for share, ratio in zip(box[2::2], box[3::2], strict=True):
        area = (_AREA[0] + share * (_AREA[1] - _AREA[0])) * height * width
        stretch = math.exp((ratio - 0.5) * _LOG_RATIO)  # the square root of the ratio
        tall, wide = round(math.sqrt(area) / stretch), round(math.sqrt(area) * stretch)
        if 0 < tall <= height and 0 < wide <= width:
            break
    tall, wide = min(max(tall, 1), height), min(max(wide, 1), width)
    top, left = int(box[1] * (height - tall + 1)), int(box[0] * (width - wide + 1))
    return V.resized_crop(image, top, left, tall, wide, [size, size], antialias=True)


def _rand_augment(images: Images, operations: Int[Tensor, "batch 2"]) -> Images:
    """One operation on each image; those that drew the same are treated together."""
    which, sign = operations.T
    keys = 2 * which + sign * _SIGNED[which]
    order = keys.argsort(stable=True)
    there, back = send(torch.stack([order, order.argsort()]), images.device)
    groups = images[there].split(keys.bincount(minlength=2 * len(OPERATIONS)).tolist())
    return torch.cat(
        [
            apply_operation(OPERATIONS[key // 2], group, 2.0 * (key % 2) - 1)
            for key, group in enumerate(groups)
            if len(group)
        ]
    )[back]


def apply_operation(name: str, images: Images, sign: float) -> Images:
    """One of `OPERATIONS`; `sign` (-1 or 1) is for those that go both ways."""
    height, width = images.shape[-2:]
    magnitude = _magnitude(name, height, width) * (sign if _SIGNED[OPERATIONS.index(name)] else 1)
    # torchvision copies matrices and kernels to the GPU and waits: these two do without.
    if name in _WARPS:
        source = _source(name, magnitude, height, width, images.device)
        pixels = F.pad(images.flatten(2), (1, 0))
        return pixels.gather(2, source.expand(*images.shape[:2], -1)).view_as(images)
    if name == "Sharpness":
        return _sharpen(images, 1 + magnitude)
    return _torchvisions(name, images, magnitude)


def _torchvisions(name: str, images: Tensor, magnitude: float) -> Tensor:
    apply: Any = _RAND_AUGMENT._apply_image_or_video_transform
    return apply(images, name, magnitude, _RAND_AUGMENT.interpolation, _RAND_AUGMENT._fill)


@lru_cache
def _magnitude(name: str, height: int, width: int) -> float:
    bins, _ = _RAND_AUGMENT._AUGMENTATION_SPACE[name]
    values = bins(_RAND_AUGMENT.num_magnitude_bins, height, width)
    return 0.0 if values is None else float(values[_RAND_AUGMENT.magnitude])


@lru_cache
def _source(name: str, magnitude: float, height: int, width: int, device: torch.device) -> Tensor:
    """Which pixel torchvision's warp puts where, counted from 1; 0 is outside of the image. Found
    by warping the pixels' rows and columns."""
    grid = torch.meshgrid(torch.arange(1.0, height + 1), torch.arange(0.0, width), indexing="ij")
    rows, columns = _torchvisions(name, torch.stack(grid), magnitude).long()
    return send(((rows - 1) * width + columns + 1).clamp(min=0).flatten(), device)


def _sharpen(images: Images, factor: float) -> Images:
    """Away from the mean of each pixel (weight 5) and its eight neighbours (weight 1)."""
    if min(images.shape[-2:]) <= 2:
        return images
    inner = images[..., 1:-1, 1:-1].float()
    smooth = ((9 * F.avg_pool2d(images.float(), 3, stride=1) + 4 * inner) / 13).round_()
    out = images.clone()
    out[..., 1:-1, 1:-1] = torch.lerp(smooth, inner, factor).clamp_(0, 255).to(torch.uint8)
    return out
