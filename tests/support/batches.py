"""What tests of data sets and of splits do with batches."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dasvit.data.splits import Split


def all_of(split: Split, batch_size: int = 100, **options: Any) -> tuple[Tensor, Tensor]:
    """Every batch of a split, joined."""
    images, labels = zip(*split.batches(batch_size, **options), strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_equal(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> None:
    """The same images and labels, bit for bit."""
    assert torch.equal(left[0], right[0])
    assert torch.equal(left[1], right[1])


def as_keys(images: Tensor) -> list[bytes]:
    """One hashable value an image."""
    return [image.numpy().tobytes() for image in images]


def shifted(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """One image `(channels, height, width)` moved, zeros coming in, then mirrored."""
    _, height, width = image.shape
    padded = F.pad(image, (width, width, height, height))
    out = padded[:, height - down : 2 * height - down, width - right : 2 * width - right]
    return out.flip(2) if flip else out
