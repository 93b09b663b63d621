"""Images that stream from files, decoded by worker processes."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dasvit.data.augment import augment, cut_box
from dasvit.data.images import open_image, square_pixels
from dasvit.data.splits import Plan, Split

__all__ = ["FolderSplit", "Sample"]

Sample = tuple[str, int]
"""Path and label of an image."""
MOST_IN_A_ROW = 100
"""Unreadable images that are passed over one after the other before a run gives up."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSplit(Split):
    """Images that stream from their files.

    Attributes:
        samples: path and label of each.
        channels: 1 for grey, 3 for RGB.
        device: where the batches go.
    """

    samples: tuple[Sample, ...]
    channels: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def targets(self) -> Tensor:
        return torch.tensor([label for _, label in self.samples])

    def subset(self, index: Tensor) -> Self:
        return replace(self, samples=tuple(self.samples[i] for i in index.tolist()))

    @property
    def _side(self) -> int:
        return self.config.image_size

    def _read(self, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        # A box is cut from the whole image, by the worker that decodes it.
        boxes = [draws.pop("box").tolist() if "box" in draws else None for _, draws in plan]
        keys = [
            list(zip(index.tolist(), box or [None] * len(index), strict=True))
            for (index, _), box in zip(plan, boxes, strict=True)
        ]
        with warnings.catch_warnings():  # more workers than cores are the user's choice
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader: DataLoader[Any] = DataLoader(
                _Files(self),
                batch_sampler=keys,  # type: ignore[arg-type]
                num_workers=self.config.num_workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # workers draw nothing
            )
        try:
            for (pixels, labels), (_, draws) in zip(loader, plan, strict=True):
                pixels = pixels.to(self.device, non_blocking=True)
                yield augment(pixels, draws), labels.to(self.device, non_blocking=True)
        except (_UnreadableImagesError, RuntimeError) as error:
            *_, last = str(error).strip().splitlines()  # a worker puts its traceback before it
            if isinstance(error, _UnreadableImagesError):
                raise ValueError(last.rpartition(f"{type(error).__name__}: ")[2]) from None
            if "shared memory" not in last and "killed" not in last:
                raise
            raise ValueError(
                f"processes that decode images failed ({last}); give them more shared memory "
                "(docker run --shm-size), or none with --num-workers 0"
            ) from None


class _UnreadableImagesError(Exception):
    pass


class _Files(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: FolderSplit) -> None:
        self._split = split

    def __getitem__(self, index: tuple[int, list[float] | None]) -> tuple[Tensor, int]:
        """Pixels and label. All images could be read when the run began; one that has gone bad
        since is replaced by the next one that can, so that days of work do not end with it."""
        (first, box), split, path = index, self._split, ""
        size = split.config.image_size
        for number in range(first, first + MOST_IN_A_ROW):
            path, label = split.samples[number % len(split)]
            try:
                pixels = square_pixels(open_image(path), split.channels, None if box else size)
                return cut_box(pixels, box, size) if box else pixels, label
            except OSError as error:
                warnings.warn(f"{error}; the image after it is taken instead", stacklevel=2)
        raise _UnreadableImagesError(
            f"{MOST_IN_A_ROW} images in a row cannot be read any more, the last is {path}; is the "
            "disk still there? The last checkpoint is kept"
        )
