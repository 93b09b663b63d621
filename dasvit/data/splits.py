"""Lists of labelled images that yield batches on the device; same seeds, same batches.

Small ones live on the device as one uint8 tensor, large ones stream from files through worker
processes. Order and augmentation are drawn from the seed alone, so that a restart repeats them.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dasvit.data.augment import Draws, augment, draw_augmentation
from dasvit.data.batch import Batch, send
from dasvit.data.config import DataConfig
from dasvit.run.seed import derive_seed, generator

__all__ = [
    "ALONE",
    "ImageData",
    "Plan",
    "Share",
    "Split",
    "TensorSplit",
    "data_from_arrays",
    "endless",
    "split_half",
]

Share = tuple[int, int]
"""Rank and number of processes that share each batch."""
ALONE: Share = (0, 1)
Plan = list[tuple[Tensor, Draws]]
"""Numbers of each batch's images, and what they drew."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split(ABC):
    """A list of labelled images.

    Attributes:
        mean, std: per channel, of images in [0, 1]; batches are normalised by them.
        config: image size, augmentation, workers.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: DataConfig

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """The label of every image, (N,), int64, on the CPU."""

    @abstractmethod
    def subset(self, index: Tensor) -> Self:
        """The images at `index`, in that order."""

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """The same images under another normalisation."""
        return replace(self, mean=mean, std=std)

    def batches(
        self, batch_size: int, *, seed: int | None = None, share: Share = ALONE
    ) -> Iterator[Batch]:
        """Batches on the device: normalised float images and int64 labels.

        With a seed: shuffled and augmented by it, and an incomplete last batch is dropped unless
        it is the only one. Without: in order, not augmented, all of them.

        Args:
            batch_size: of the whole batch.
            seed: of order and augmentation.
            share: (rank, processes): every process gets its rows of the same batches, rank r those
                numbered r, r + processes, …; together they are the whole batches.
        """
        rank, processes = share
        rows = slice(rank, None, processes)
        plan = [
            (index[rows], {name: drawn[rows] for name, drawn in draws.items()})
            for index, draws in self._plan(batch_size, seed)
            if len(index) > rank  # a last batch may be smaller than the number of processes
        ]
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        scale, shift = 1 / (255 * std), torch.tensor(self.mean).view(1, -1, 1, 1) / std
        size = (self.config.image_size,) * 2
        for pixels, labels in self._read(plan):
            if pixels.device != scale.device:
                scale, shift = send(scale, pixels.device), send(shift, pixels.device)
            images = pixels.float()
            if images.shape[-2:] != size:
                images = F.interpolate(images, size, mode="bilinear", antialias=True)
            yield images * scale - shift, labels

    def _plan(self, batch_size: int, seed: int | None) -> Plan:
        if seed is None:
            return [(index, {}) for index in torch.arange(len(self)).split(batch_size)]
        draw = generator(seed)
        full = min(batch_size, len(self))
        batches = torch.randperm(len(self), generator=draw).split(batch_size)
        return [
            (index, draw_augmentation(self.config.augment, full, self._side, draw))
            for index in batches
            if len(index) == full
        ]

    @property
    @abstractmethod
    def _side(self) -> int:
        """Of the images that are augmented, in pixels."""

    @abstractmethod
    def _read(self, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images in uint8, and labels, on the device."""


@dataclass(frozen=True, eq=False)
class TensorSplit(Split):
    """Images that live on the device as one tensor, and are enlarged batch by batch.

    Attributes:
        images: (N, channels, height, width), uint8.
        labels: (N,), int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> Tensor:
        return self.labels.cpu()

    def subset(self, index: Tensor) -> Self:
        index = index.to(self.images.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    @property
    def _side(self) -> int:
        return self.images.shape[-1]

    def _read(self, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        for index, draws in plan:
            index = send(index, self.images.device)
            yield augment(self.images[index], draws), self.labels[index]


def split_half(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Two parts of a training set, stratified: of every class the second holds its share, to within
    one image. In a search they are the weight half and the alpha half.

    Args:
        fraction: share of the second part.

    Raises:
        ValueError: one part would be empty.
    """
    count = len(split)
    size = round(count * fraction)
    if not 0 < size < count:
        raise ValueError(
            f"a share of {fraction:g} (val_fraction, held_out) leaves one part of {count} images "
            "empty; choose one nearer to 0.5"
        )
    order = torch.randperm(count, generator=generator(seed, "split"))
    by_class = order[split.targets[order].argsort(stable=True)]
    steps = torch.arange(count + 1) * size // count  # it grows by one at evenly spaced places
    second = torch.zeros(count, dtype=torch.bool)
    second[by_class[steps.diff() == 1]] = True
    return split.subset(order[~second[order]]), split.subset(order[second[order]])


def endless(split: Split, batch_size: int, *seed: int | str) -> Iterator[Batch]:
    """Batches without end, shuffled anew in every pass."""
    for round_number in itertools.count():
        yield from split.batches(batch_size, seed=derive_seed(*seed, round_number))


@dataclass(frozen=True, slots=True)
class ImageData:
    """A data set ready for use.

    Attributes:
        train: the full training set. test: looked at once, at the end of retraining.
        class_names: in the order of the labels.
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


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, of values in [0, 1]; from how often each value occurs."""
    counts = torch.stack([x.flatten().bincount(minlength=256) for x in images.unbind(1)]).double()
    values, total = torch.arange(256).double() / 255, counts.sum(1, keepdim=True)
    mean = (counts * values).sum(1, keepdim=True) / total
    square = (counts * (values - mean).square()).sum(1, keepdim=True) / (total - 1)
    std = square.sqrt().clamp(min=1 / 255)
    return tuple(mean.flatten().float().tolist()), tuple(std.flatten().float().tolist())


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
    held, held_out = (
        TensorSplit(x.to(device), y.long().to(device), mean=mean, std=std, config=config)
        for x, y in (train, test)
    )
    return ImageData(held, held_out, class_names, train[0].shape[1], mean, std, skipped)
