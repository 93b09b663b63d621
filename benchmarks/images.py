"""Real images that the benchmarks measure with, as folders that `dasvit` reads."""

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data
from dasvit.data.splits import TensorSplit, split_half

__all__ = ["load_fashion", "part_of", "write_cells", "write_idx"]


def load_fashion(source: Path) -> tuple[TensorSplit, TensorSplit]:
    """Fashion-MNIST's training and test images."""
    config = DataConfig(dataset="fashion_mnist", data_dir=str(source), image_size=28)
    data = load_data(config, torch.device("cpu"))
    assert isinstance(data.train, TensorSplit) and isinstance(data.test, TensorSplit)
    return data.train, data.test


def part_of(split: TensorSplit, images: int, seed: int) -> tuple[TensorSplit, TensorSplit]:
    """So many images, stratified by class, and the others."""
    others, part = split_half(split, images / len(split), seed)
    assert isinstance(part, TensorSplit) and isinstance(others, TensorSplit)
    return part, others


def write_idx(train: TensorSplit, test: TensorSplit, folder: Path) -> None:
    """A data set of Fashion-MNIST's kind."""
    for split, name in ((train, "train"), (test, "t10k")):
        for kind, values in (("images", split.images[:, 0]), ("labels", split.labels)):
            path = folder / f"{name}-{kind}-idx{values.dim()}-ubyte"
            path.write_bytes(_idx(values))


def _idx(values: Tensor) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.byte().numpy().tobytes()


def write_cells(folder: Path) -> None:
    """The solar cells of PyPI's `elpv-dataset` (Buerhop-Lutz et al., 2018; CC BY-NC-SA 4.0):
    probability of a defect 0 → `ok`, 1 → `defect`, the rest left out. Of each class a fifth, drawn
    by a seed, is for testing.

    Raises:
        ImportError: `pip install elpv-dataset` first.
    """
    from PIL import Image

    images, chances, _ = import_module("elpv_dataset.utils").load_dataset()
    for name, chance in (("ok", 0.0), ("defect", 1.0)):
        found = [image for image, p in zip(images, chances, strict=True) if p == chance]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        for place, number in enumerate(order):
            part = "test" if place < len(found) // 5 else "train"
            path = folder / part / name / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found[number]).save(path)
