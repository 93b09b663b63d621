"""Lists of labelled images that yield batches on the device; same seeds, same batches.

Small ones live on the device as one uint8 tensor and are augmented there in batches. Large ones
stream from files. Both draw order and augmentation from the seed they are given, so that a restart
repeats them.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import datasets as tv
from torchvision.transforms import v2

from dasvit.batch import Batch
from dasvit.config import DataConfig
from dasvit.files import first_line
from dasvit.seed import derive_seed, generator

__all__ = ["FolderSplit", "Split", "TensorSplit", "endless", "split_half"]


class Split(Protocol):
    """A list of labelled images."""

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> "Split":
        """The images at `index`, in that order."""
        ...

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """Batches on the device: normalised float images and int64 labels.

        With a seed: shuffled and augmented by it, and an incomplete last batch is dropped unless
        it is the only one. Without: in order, not augmented, all of them.
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

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        if seed is None:
            for images, labels in zip(
                self.images.split(batch_size), self.labels.split(batch_size), strict=True
            ):
                yield self._finish(images), labels
            return
        draw = generator(seed)
        order = torch.randperm(len(self), generator=draw).to(self.images.device)
        for index in _training_batches(order, batch_size):
            images = self._augment(self.images[index], draw)
            yield self._finish(images), self.labels[index]

    def _augment(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Random translation by up to an eighth of the side (zeros come in), and flip."""
        if self._config.augment == "none":
            return images
        batch, _, height, width = images.shape
        reach = max(1, height // 8)
        padded = F.pad(images, (reach, reach, reach, reach))
        offsets = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=draw)
        rows = (offsets[0] + torch.arange(height)).to(images.device)  # (batch, height)
        columns = offsets[1] + torch.arange(width)  # (batch, width)
        if self._config.augment == "crop_flip":
            flip = torch.rand(batch, 1, generator=draw) < 0.5
            columns = torch.where(flip, columns.flip(1), columns)
        columns = columns.to(images.device)
        which = torch.arange(batch, device=images.device)[:, None, None]
        # Advanced indices around a slice put the channels last.
        shifted = padded[which, :, rows[:, :, None], columns[:, None, :]]
        return shifted.permute(0, 3, 1, 2).contiguous()

    def _finish(self, images: Tensor) -> Tensor:
        size = self._config.image_size
        out = images.float()
        if images.shape[-2:] != (size, size):
            out = F.interpolate(out, (size, size), mode="bilinear", antialias=True)
        return out * self._scale - self._shift


def _training_batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    for index in order.split(batch_size):
        if len(index) == min(batch_size, len(order)):
            yield index


class FolderSplit:
    """Images that stream from files, decoded by worker processes.

    Args:
        samples: (path, label) each.
        mean: per channel. std: per channel.
        config: image size, augmentation, workers.
        device: where the batches go.
    """

    def __init__(
        self,
        samples: list[tuple[str, int]],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        config: DataConfig,
        device: torch.device,
    ) -> None:
        self._samples, self._mean, self._std = samples, mean, std
        self._config, self._device = config, device

    def __len__(self) -> int:
        return len(self._samples)

    def subset(self, index: Tensor) -> "FolderSplit":
        return FolderSplit(
            [self._samples[i] for i in index.tolist()],
            mean=self._mean,
            std=self._std,
            config=self._config,
            device=self._device,
        )

    def batches(self, batch_size: int, *, seed: int | None = None) -> Iterator[Batch]:
        if seed is None:
            index = list(torch.arange(len(self)).split(batch_size))
        else:
            order = torch.randperm(len(self), generator=generator(seed))
            index = list(_training_batches(order, batch_size))
        loader = DataLoader(
            _FileDataset(self._samples, self._mean, self._std, self._config, seed),
            batch_sampler=[i.tolist() for i in index],
            num_workers=self._config.num_workers,
            pin_memory=self._device.type == "cuda",
        )
        try:
            for images, labels in loader:
                yield (
                    images.to(self._device, non_blocking=True),
                    labels.to(self._device, non_blocking=True),
                )
        except _UnreadableImageError as error:  # a worker process puts its traceback before it
            last = str(error).strip().splitlines()[-1]
            raise ValueError(last.rpartition(f"{type(error).__name__}: ")[2]) from None


class _UnreadableImageError(Exception):
    pass


class _FileDataset(TorchDataset[tuple[Tensor, int]]):
    def __init__(
        self,
        samples: list[tuple[str, int]],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        config: DataConfig,
        seed: int | None,
    ) -> None:
        size = config.image_size
        steps: list[torch.nn.Module] = [v2.ToImage(), v2.Resize((size, size), antialias=True)]
        if seed is not None and config.augment != "none":
            steps.append(v2.RandomCrop(size, padding=max(1, size // 8)))
        if seed is not None and config.augment == "crop_flip":
            steps.append(v2.RandomHorizontalFlip())
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self._transform = v2.Compose(steps)
        self._samples, self._seed = samples, seed

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._samples[index]
        try:
            image = tv.folder.default_loader(path)
        except (OSError, SyntaxError) as error:  # Pillow's for some broken PNGs
            raise _UnreadableImageError(
                f"{path} is not a readable image ({first_line(error)}); fetch it again"
            ) from None
        # Seeded an image, not a worker: the number of workers does not change the batches.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed or 0, "augment", index))
            return self._transform(image), label


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
