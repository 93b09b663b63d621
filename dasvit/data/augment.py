"""Augmentation of a batch on its device: every image its own draw, no image a Python call."""

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from dasvit.data.batch import send
from dasvit.data.rand_augment import rand_augment

__all__ = ["augment_batch"]

Images = UInt8[Tensor, "batch channels height width"]

_SCALE, _LOG_RATIO = (0.08, 1.0), 0.2876820724517809  # log(4 / 3)


def augment_batch(images: Images, kind: str, draw: torch.Generator) -> Images:
    """Augmented images, of the same size.

    Args:
        images: on any device.
        kind: as `DataConfig.augment`.
        draw: on the CPU; equal states give equal images.
    """
    if kind == "none":
        return images
    if kind == "resized_crop":
        return _resized_crop(images, draw)
    images = _shift(images, draw, flip=kind != "shift")
    return rand_augment(images, draw) if kind == "rand" else images


def _shift(images: Images, draw: torch.Generator, *, flip: bool) -> Images:
    """Random translation by up to an eighth of the side (zeros come in), and a mirror image."""
    batch, _, height, width = images.shape
    reach = max(1, height // 8)
    padded = F.pad(images, (reach, reach, reach, reach))
    offsets = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=draw)
    rows = offsets[0] + torch.arange(height)  # (batch, height)
    columns = offsets[1] + torch.arange(width)  # (batch, width)
    if flip:
        mirrored = torch.rand(batch, 1, generator=draw) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = (send(index, images.device) for index in (rows, columns))
    which = torch.arange(batch, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    shifted = padded[which, :, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2).contiguous()


def _resized_crop(images: Images, draw: torch.Generator) -> Images:
    """A box of 8 to 100 % of the area and 3/4 to 4/3 of the ratio, stretched to the whole image,
    and a mirror image: the usual crop of training on ImageNet."""
    batch = len(images)
    area, ratio, x, y, mirror = torch.rand(5, batch, generator=draw)
    area = _SCALE[0] + area * (_SCALE[1] - _SCALE[0])
    ratio = ((2 * ratio - 1) * _LOG_RATIO).exp()
    width, height = ((area * r).sqrt().clamp(max=1.0) for r in (ratio, 1 / ratio))
    # Positions from -1 to 1 over the image; the box's centre keeps it inside.
    x, y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
    width = torch.where(mirror < 0.5, -width, width)
    zero = torch.zeros(batch)
    theta = torch.stack(
        [torch.stack([width, zero, x], -1), torch.stack([zero, height, y], -1)], dim=1
    )
    grid = F.affine_grid(send(theta, images.device), list(images.shape), align_corners=False)
    out = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return out.round_().to(torch.uint8)
