"""Lists of labelled images that yield batches on the device; same seeds, same batches.

Small ones live on the device as one uint8 tensor and are augmented there in batches. Large ones
stream from files (`dasvit.data.stream`). Both draw order and augmentation from the seed they are given,
so that a restart repeats them.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dasvit.data.augment import augment_batch
from dasvit.data.batch import Batch, send
from dasvit.data.config import DataConfig
from dasvit.run.seed import derive_seed, generator

__all__ = ["ALONE", "Share", "Split", "TensorSplit", "endless", "split_half", "training_batches"]

Share = tuple[int, int]
"""Rank and number of processes that share each batch."""
ALONE: Share = (0, 1)


class Split(Protocol):
    """A list of labelled images."""

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> "Split":
        """The images at `index`, in that order."""
        ...

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Split":
        """The same images under another normalisation."""
        ...

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
        ...


class TensorSplit:
    """Images that live on the device as one uint8 tensor.

    Args:
        images: (N, channels, height, width), uint8.
        labels: (N,), int64.
        mean: per channel. std: per channel.
        config: image size and augmentation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        config: DataConfig,
    ) -> None:
        self.images, self.labels = images, labels
        self._mean, self._std = mean, std
        self._config = config
        shape = (1, -1, 1, 1)
        self._scale = 1 / (255 * torch.tensor(std, device=images.device).view(shape))
        self._shift = torch.tensor(mean, device=images.device).view(shape) / torch.tensor(
            std, device=images.device
        ).view(shape)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "TensorSplit":
        index = index.to(self.images.device)
        return TensorSplit(
            self.images[index],
            self.labels[index],
            mean=self._mean,
            std=self._std,
            config=self._config,
        )

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "TensorSplit":
        return TensorSplit(self.images, self.labels, mean=mean, std=std, config=self._config)

    def batches(
        self, batch_size: int, *, seed: int | None = None, share: Share = ALONE
    ) -> Iterator[Batch]:
        rank, processes = share
        rows = slice(rank, None, processes)
        if seed is None:
            for images, labels in zip(
                self.images.split(batch_size), self.labels.split(batch_size), strict=True
            ):
                if len(labels[rows]):
                    yield self._finish(images[rows]), labels[rows]
            return
        draw = generator(seed)
        order = send(torch.randperm(len(self), generator=draw), self.images.device)
        for index in training_batches(order, batch_size):
            # All of a batch is augmented, on uint8, so that the draws are those of one process.
            images = augment_batch(self.images[index], self._config.augment, draw)
            yield self._finish(images[rows]), self.labels[index[rows]]

    def _finish(self, images: Tensor) -> Tensor:
        size = self._config.image_size
        out = images.float()
        if images.shape[-2:] != (size, size):
            out = F.interpolate(out, (size, size), mode="bilinear", antialias=True)
        return out * self._scale - self._shift


def training_batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """An order in pieces; an incomplete last one goes, unless it is the only one."""
    for index in order.split(batch_size):
        if len(index) == min(batch_size, len(order)):
            yield index


def split_half(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """The weight half and the alpha half of a training set.

    Args:
        fraction: share of the alpha half.

    Raises:
        ValueError: one half would be empty.
    """
    order = torch.randperm(len(split), generator=generator(seed, "split"))
    size = round(len(split) * fraction)
    if not 0 < size < len(split):
        raise ValueError(
            f"val_fraction={fraction} leaves one half of {len(split)} images empty; "
            "choose one nearer to 0.5"
        )
    return split.subset(order[size:]), split.subset(order[:size])


def endless(split: Split, batch_size: int, *seed: int | str) -> Iterator[Batch]:
    """Batches without end, shuffled anew in every pass."""
    for round_number in itertools.count():
        yield from split.batches(batch_size, seed=derive_seed(*seed, round_number))
