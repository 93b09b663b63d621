"""Images that stream from files, decoded and augmented by worker processes."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from dasvit.data.batch import Batch
from dasvit.data.config import DataConfig
from dasvit.data.image_folder import Sample, open_image
from dasvit.data.pixels import square_pixels
from dasvit.data.splits import ALONE, Share, training_batches
from dasvit.run.seed import derive_seed, generator

__all__ = ["FolderSplit"]

MOST_IN_A_ROW = 100
"""Unreadable images that are passed over one after the other before a run gives up."""


class _UnreadableImagesError(Exception):
    pass


class FolderSplit:
    """Images that stream from files.

    Args:
        samples: path and label each.
        channels: 1 for grey, 3 for RGB.
        mean: per channel. std: per channel.
        config: image size, augmentation, workers.
        device: where the batches go.
    """

    def __init__(
        self,
        samples: list[Sample],
        *,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        config: DataConfig,
        device: torch.device,
    ) -> None:
        self._samples, self._channels = samples, channels
        self._mean, self._std = mean, std
        self._config, self._device = config, device

    def __len__(self) -> int:
        return len(self._samples)

    def subset(self, index: Tensor) -> "FolderSplit":
        return FolderSplit(
            [self._samples[i] for i in index.tolist()],
            channels=self._channels,
            mean=self._mean,
            std=self._std,
            config=self._config,
            device=self._device,
        )

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "FolderSplit":
        return FolderSplit(
            self._samples,
            channels=self._channels,
            mean=mean,
            std=std,
            config=self._config,
            device=self._device,
        )

    def batches(
        self, batch_size: int, *, seed: int | None = None, share: Share = ALONE
    ) -> Iterator[Batch]:
        rank, processes = share
        if seed is None:
            index = list(torch.arange(len(self)).split(batch_size))
        else:
            order = torch.randperm(len(self), generator=generator(seed))
            index = list(training_batches(order, batch_size))
        # A crop that is resized is cut from the whole image.
        crops = seed is not None and self._config.augment == "resized_crop"
        size = None if crops else self._config.image_size
        transform = _transform(self._config, self._mean, self._std, train=seed is not None)
        with warnings.catch_warnings():  # more workers than cores are the user's choice
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                _FileDataset(self._samples, self._channels, size, transform, seed),
                # Of a last batch smaller than the number of processes some get nothing.
                batch_sampler=[rows for i in index if (rows := i[rank::processes].tolist())],
                num_workers=self._config.num_workers,
                pin_memory=self._device.type == "cuda",
            )
        try:
            for images, labels in loader:
                yield (
                    images.to(self._device, non_blocking=True),
                    labels.to(self._device, non_blocking=True),
                )
        except _UnreadableImagesError as error:  # a worker process puts its traceback before it
            last = str(error).strip().splitlines()[-1]
            raise ValueError(last.rpartition(f"{type(error).__name__}: ")[2]) from None


def _transform(
    config: DataConfig, mean: tuple[float, ...], std: tuple[float, ...], *, train: bool
) -> v2.Transform:
    size, kind = config.image_size, config.augment
    steps: list[torch.nn.Module] = []
    if train and kind == "resized_crop":
        steps += [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    elif train and kind != "none":
        steps.append(v2.RandomCrop(size, padding=max(1, size // 8)))
        if kind != "shift":
            steps.append(v2.RandomHorizontalFlip())
        if kind == "rand":
            steps.append(v2.RandAugment())
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


class _FileDataset(TorchDataset[tuple[Tensor, int]]):
    def __init__(
        self,
        samples: list[Sample],
        channels: int,
        size: int | None,
        transform: v2.Transform,
        seed: int | None,
    ) -> None:
        self._samples, self._channels, self._size = samples, channels, size
        self._transform, self._seed = transform, seed

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self._read(index)
        # Seeded an image, not a worker: the number of workers does not change the batches.
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPU's generator too.
            torch.default_generator.manual_seed(derive_seed(self._seed or 0, "augment", index))
            return self._transform(pixels), label

    def _read(self, index: int) -> tuple[Tensor, int]:
        """Pixels and label. All images could be read when the run began; one that has gone bad
        since is replaced by the next one that can, so that days of work do not end with it."""
        path = ""
        for number in range(index, index + MOST_IN_A_ROW):
            path, label = self._samples[number % len(self._samples)]
            try:
                return square_pixels(open_image(path), self._channels, self._size), label
            except OSError as error:
                warnings.warn(f"{error}; the image after it is taken instead", stacklevel=2)
        raise _UnreadableImagesError(
            f"{MOST_IN_A_ROW} images in a row cannot be read any more, the last is {path}; is the "
            "disk still there? The last checkpoint is kept"
        )
