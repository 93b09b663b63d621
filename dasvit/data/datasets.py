"""Data sets by name: read from their files, checked, and split into training and test images."""

import gzip
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as tv

from dasvit.data.config import DataConfig
from dasvit.data.image_folder import FoundImages, find_class_images, folder_data
from dasvit.data.splits import ImageData, data_from_arrays
from dasvit.run.files import first_line

__all__ = [
    "ImageData",
    "check_data",
    "dataset_names",
    "digits_split",
    "imagenet100_classes",
    "load_data",
    "num_train_images",
]

Loader = Callable[[DataConfig, torch.device], ImageData]


def _load_digits(config: DataConfig, device: torch.device) -> ImageData:
    """scikit-learn's 1,797 digits, 8 × 8 grey; a fixed stratified fifth is the test set."""
    pixels, target = _read_digits()  # (1797, 64) of 0 to 16, and (1797,)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    train, test = digits_split()
    x, y = torch.from_numpy(images), torch.from_numpy(target)
    return data_from_arrays(
        config, device, (x[train], y[train]), (x[test], y[test]), tuple(map(str, range(10)))
    )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels from scikit-learn's file: importing scikit-learn takes over a second, a
    tenth of a small search."""
    package = importlib.util.find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            rows = np.loadtxt(path, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # wherever else a release keeps it

    loaded: Any = load_digits(return_X_y=True)
    return loaded


def digits_split() -> tuple[np.ndarray, np.ndarray]:
    """Indices of the digits for training (in the order they are held in) and for testing.

    The data set has no split of its own: this one never changes, with the seed or otherwise.
    """
    text = resources.files("dasvit.data").joinpath("digits_split.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    train, test = " ".join(lines).split("  ")  # at the blank line
    return np.array(train.split(), np.int64), np.array(test.split(), np.int64)


def _folder(config: DataConfig) -> Path:
    if config.data_dir is None:
        raise ValueError(f"data set {config.dataset!r} needs --data-dir, the folder that holds it")
    path = Path(config.data_dir).expanduser()
    if not path.is_dir() and not config.download:
        raise ValueError(f"data_dir: there is no folder {path}; check --data-dir")
    return path


def _load_cifar(config: DataConfig, device: torch.device) -> ImageData:
    kind = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}[config.dataset]
    root = _folder(config)
    try:
        # torchvision checks the files' checksums before it unpickles them.
        train, test = (kind(root, train=t, download=config.download) for t in (True, False))
    except (RuntimeError, OSError, EOFError) as error:
        raise ValueError(
            f"{config.dataset} in {root} is missing or corrupt ({first_line(error)}); put the "
            "official archive's folder there, or add --download"
        ) from None
    arrays = [
        (torch.from_numpy(d.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(d.targets))
        for d in (train, test)
    ]
    return data_from_arrays(config, device, arrays[0], arrays[1], tuple(train.classes))


_IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _idx_path(root: Path, name: str) -> Path | None:
    for folder in (root, root / "FashionMNIST" / "raw"):
        for suffix in ("-ubyte", "-ubyte.gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    return None


def _read_idx(path: Path) -> Tensor:
    """An IDX file (big-endian header: type, dimensions, sizes; then uint8), gzipped or not."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if raw[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        ndim = raw[3]
        shape = np.frombuffer(raw, ">u4", count=ndim, offset=4)
        values = np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path} is corrupt ({first_line(error)}); fetch it again") from None
    return torch.from_numpy(values.copy())


def _check_fashion_mnist(config: DataConfig) -> None:
    root = _folder(config)
    missing = [f"{name}-ubyte[.gz]" for name in _IDX_FILES if _idx_path(root, name) is None]
    if missing and not config.download:
        raise ValueError(
            f"fashion_mnist: {root} lacks {', '.join(missing)}; check --data-dir, or add --download"
        )


def _load_fashion_mnist(config: DataConfig, device: torch.device) -> ImageData:
    root = _folder(config)
    if config.download:
        try:
            tv.FashionMNIST(root, download=True)
        except (RuntimeError, OSError, EOFError) as error:
            raise ValueError(
                f"fashion_mnist: the download into {root} failed ({first_line(error)})"
            ) from None
    _check_fashion_mnist(replace(config, download=False))
    paths = [_idx_path(root, name) for name in _IDX_FILES]
    x_train, y_train, x_test, y_test = (_read_idx(path) for path in paths if path)
    for x, y in ((x_train, y_train), (x_test, y_test)):
        wrong = f"{len(x)} images, {len(y)} labels"
        if x.dim() == 3 and y.shape == x.shape[:1] and len(y):
            wrong = f"a label {y.max()} of 0 to 9" if y.max() >= 10 else ""
        if wrong:
            raise ValueError(f"fashion_mnist in {root} is corrupt: {wrong}")
    parts = (x_train[:, None], y_train), (x_test[:, None], y_test)
    return data_from_arrays(config, device, *parts, tuple(tv.FashionMNIST.classes))


def imagenet100_classes() -> tuple[str, ...]:
    """The 100 WordNet ids of ImageNet-100 (Tian et al., Contrastive Multiview Coding)."""
    text = resources.files("dasvit.data").joinpath("imagenet100.txt").read_text(encoding="utf-8")
    return tuple(sorted(text.split()))


def _find(config: DataConfig) -> FoundImages:
    if config.download:
        raise ValueError(f"download: {config.dataset} cannot be fetched; leave --download away")
    classes = imagenet100_classes() if config.dataset == "imagenet100" else ()
    return find_class_images(_folder(config), test_fraction=config.test_fraction, classes=classes)


def _load_folder(config: DataConfig, device: torch.device) -> ImageData:
    return folder_data(_find(config), config, device)


_SETS: dict[str, tuple[Callable[[DataConfig], Any], Loader]] = {
    "digits": (lambda config: None, _load_digits),
    "fashion_mnist": (_check_fashion_mnist, _load_fashion_mnist),
    "cifar10": (_folder, _load_cifar),
    "cifar100": (_folder, _load_cifar),
    "imagenet100": (_find, _load_folder),
    "folder": (_find, _load_folder),
}
"""How each data set is checked without reading its images, and how it is read."""


def dataset_names() -> tuple[str, ...]:
    """The data sets known by name."""
    return tuple(_SETS)


def num_train_images(dataset: str) -> int | None:
    """How many images a data set has for training; None where only its files tell."""
    if dataset == "digits":
        return len(digits_split()[0])
    return 50_000 if dataset in ("cifar10", "cifar100") else None


def check_data(config: DataConfig) -> None:
    """What can be checked without reading the images.

    Raises:
        ValueError: an unknown data set, or a folder that is missing or lacks files.
    """
    if config.dataset not in _SETS:
        raise ValueError(
            f"unknown data set {config.dataset!r}; known: {', '.join(dataset_names())}"
        )
    _SETS[config.dataset][0](config)


def load_data(config: DataConfig, device: torch.device) -> ImageData:
    """Read a data set.

    Raises:
        ValueError: as `check_data`, or files that are corrupt.
    """
    check_data(config)
    return _SETS[config.dataset][1](config, device)
