"""A data set ready for use, whatever it was read from."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dasvit.data.config import DataConfig
from dasvit.data.splits import Split, TensorSplit

__all__ = ["ImageData", "data_from_arrays"]


@dataclass(frozen=True, slots=True)
class ImageData:
    """A data set ready for use.

    Attributes:
        train: the full training set. test: looked at once, at the end of retraining.
        class_names: one a class, in the order of the labels.
        in_channels: 1 for grey images, 3 for RGB.
        mean: per channel, on images in [0, 1]. std: likewise.
        skipped: paths of images that could not be read and are left out.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def facts(self) -> dict[str, Any]:
        """What a continued run must find again, plain values. The test set has no part in it."""
        return {"training images": len(self.train), "classes": len(self.class_names)}


_AT_ONCE = 2**26  # values; their float copy takes 256 MiB


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation a channel, of values in [0, 1]."""
    if images.numel() <= _AT_ONCE:
        pixels = images.float().div_(255)
        std = pixels.std(dim=(0, 2, 3)).clamp(min=1 / 255)
        return tuple(pixels.mean(dim=(0, 2, 3)).tolist()), tuple(std.tolist())
    sums, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(max(1, _AT_ONCE // images[0].numel())):
        pixels = part.float().div_(255)
        sums += pixels.sum(dim=(0, 2, 3), dtype=torch.float64)
        squares += pixels.square().sum(dim=(0, 2, 3), dtype=torch.float64)
    count = images.numel() // images.shape[1]
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=(1 / 255) ** 2).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def data_from_arrays(
    config: DataConfig,
    device: torch.device,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    class_names: tuple[str, ...],
    skipped: tuple[str, ...] = (),
) -> ImageData:
    """Images (N, channels, height, width) as uint8 and labels (N,) that live on the device,
    normalised by the training images' mean and deviation."""
    mean, std = _statistics(train[0])
    splits = [
        TensorSplit(x.to(device), y.long().to(device), mean=mean, std=std, config=config)
        for x, y in (train, test)
    ]
    return ImageData(
        splits[0], splits[1], class_names, train[0].shape[1], mean, std, skipped=skipped
    )
