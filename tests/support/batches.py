"""What tests of data sets do with images and batches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
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
    """One hashable value per image."""
    return [image.numpy().tobytes() for image in images]


def shifted(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """One image `(channels, height, width)` moved, zeros coming in, then mirrored."""
    _, height, width = image.shape
    padded = F.pad(image, (width, width, height, height))
    out = padded[:, height - down : 2 * height - down, width - right : 2 * width - right]
    return out.flip(2) if flip else out


def write_image(
    path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "L", seed: int = 0
) -> None:
    """An image file of noise, `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_folder(folder: Path, count: int = 5, **options: Any) -> Path:
    """`count` images each of three classes: cat, dog, owl."""
    for label, name in enumerate(("cat", "dog", "owl")):
        for i in range(count):
            write_image(folder / name / f"{i:02d}.png", seed=100 * label + i, **options)
    return folder
