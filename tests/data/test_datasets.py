"""Data sets by name: what they hold, and files that are missing or broken."""

import gzip
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from support.batches import all_of
from support.runs import DIGITS

import dasvit.data.datasets
from dasvit.data.config import DataConfig
from dasvit.data.datasets import (
    ImageData,
    check_data,
    dataset_names,
    imagenet100_classes,
    load_data,
)

CPU = torch.device("cpu")
FASHION = DataConfig(dataset="fashion_mnist", image_size=28, augment="none")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DIGITS, CPU)


# --- Digits


def test_digits_are_scikit_learns_in_its_own_split(digits: ImageData) -> None:
    """Always the same stratified fifth, whatever the seed."""
    assert digits.class_names == tuple("0123456789")
    assert (digits.num_classes, digits.in_channels) == (10, 1)
    pixels, target = load_digits(return_X_y=True)
    torch.manual_seed(99)
    np.random.seed(99)
    again = load_data(replace(DIGITS, augment="shift"), CPU)
    parts = train_test_split(pixels, target, test_size=0.2, random_state=0, stratify=target)
    for data in (digits, again):
        found = [all_of(split) for split in (data.train, data.test)]
        for (images, labels), raw, wanted in zip(found, parts[:2], parts[2:], strict=True):
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            grey = (images[:, 0].flatten(1).double() * data.std[0] + data.mean[0]) * 16
            assert np.array_equal(grey.round().numpy(), raw)
            assert np.array_equal(labels.numpy(), wanted)


def test_digits_from_wherever_scikit_learn_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dasvit.data.datasets._read_digits()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for mine, its in zip(dasvit.data.datasets._read_digits(), expected, strict=True):
        assert np.array_equal(mine, its)


def test_normalisation_is_the_training_sets(digits: ImageData) -> None:
    train, _ = all_of(digits.train)
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-4)
    test, _ = all_of(digits.test)
    assert abs(test.mean().item()) > 1e-4  # no look at the test images
    assert test.min() == train.min()  # the same map for both


def test_resizing_is_torchs_antialiased_bilinear(digits: ImageData) -> None:
    for size in (4, 12):
        data = load_data(replace(DIGITS, image_size=size), CPU)
        found, labels = all_of(data.test)
        images, expected_labels = all_of(digits.test)
        expected = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(labels, expected_labels)


# --- Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
FILES = {
    "train-images-idx3": IMAGES[:30],
    "train-labels-idx1": np.arange(30) % 10,
    "t10k-images-idx3": IMAGES[30:],
    "t10k-labels-idx1": np.arange(10),
}


def write_fashion(folder: Path, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in FILES.items():
        content = gzip.compress(idx(values)) if suffix else idx(values)
        (folder / f"{name}-ubyte{suffix}").write_bytes(content)


@pytest.mark.parametrize(("suffix", "below"), [("", "."), (".gz", "FashionMNIST/raw")])
def test_fashion_mnist(tmp_path: Path, suffix: str, below: str) -> None:
    write_fashion(tmp_path / below, suffix)
    config = replace(FASHION, data_dir=str(tmp_path))
    data = load_data(config, CPU)
    assert (len(data.train), len(data.test), data.in_channels) == (30, 10, 1)
    assert data.class_names[:2] == ("T-shirt/top", "Trouser")
    assert data.num_classes == 10
    for split, part in ((data.train, "train"), (data.test, "t10k")):
        images, labels = all_of(split)
        raw = (images[:, 0].double() * data.std[0] + data.mean[0]) * 255
        assert np.array_equal(raw.round().numpy(), FILES[f"{part}-images-idx3"])
        assert labels.tolist() == FILES[f"{part}-labels-idx1"].tolist()
    (tmp_path / below / f"t10k-labels-idx1-ubyte{suffix}").unlink()
    with pytest.raises(ValueError, match="lacks t10k-labels-idx1-ubyte") as caught:
        check_data(config)
    assert "train-images" not in str(caught.value)


BREAK: dict[str, Callable[[bytes], bytes]] = {
    "gz: truncated": lambda content: gzip.compress(content)[:-100],
    "gz: not gzip": lambda content: b"<html>not found</html>",
    "empty": lambda content: b"",
    "one byte short": lambda content: content[:-1],
    "one byte too many": lambda content: content + b"\0",
    "floats": lambda content: content[:2] + b"\x0d" + content[3:],
    "30 images, 29 labels": lambda content: idx(np.zeros(29)),
    "a label 10": lambda content: idx(np.arange(10) + 1),
    "10 images": lambda content: idx(np.zeros((10, 784))),
}
NAMES = {"30 images, 29 labels": 1, "a label 10": 3, "10 images": 2}


@pytest.mark.parametrize(
    ("how", "number"),
    [(how, NAMES.get(how, 0)) for how in BREAK],
)
def test_corrupt_fashion_mnist_is_named(tmp_path: Path, how: str, number: int) -> None:
    write_fashion(tmp_path)
    path = tmp_path / f"{list(FILES)[number]}-ubyte"
    path = path.rename(f"{path}.gz") if how.startswith("gz") else path
    path.write_bytes(BREAK[how](path.read_bytes()))
    where = f"fashion_mnist in {tmp_path} is corrupt: {how}" if how in NAMES else f"{path} is corr"
    with pytest.raises(ValueError, match=where) as caught:
        load_data(replace(FASHION, data_dir=str(tmp_path)), CPU)
    assert "\n" not in str(caught.value)


# --- Folders in general


@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist", "imagenet100"])
def test_a_missing_folder_is_named(dataset: str, tmp_path: Path) -> None:
    config = DataConfig(dataset=dataset)
    for check in (check_data, lambda config: load_data(config, CPU)):
        with pytest.raises(ValueError, match=f"data set '{dataset}' needs --data-dir"):
            check(config)
        with pytest.raises(ValueError, match="there is no folder") as caught:
            check(replace(config, data_dir=str(tmp_path / "nowhere")))
        assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [("cifar10", "cifar-10-batches-py/data_batch_1"), ("cifar100", "cifar-100-python/train")],
)
def test_a_corrupt_cifar_folder_is_named_and_not_unpickled(
    dataset: str, file: str, tmp_path: Path
) -> None:
    harm = tmp_path / "harm"  # which unpickling would make
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(b"cposix\nsystem\n(S'touch " + bytes(harm) + b"'\ntR.")
    with pytest.raises(ValueError, match=f"{dataset} in {tmp_path} is missing or corrupt"):
        load_data(DataConfig(dataset=dataset, data_dir=str(tmp_path)), CPU)
    assert not harm.exists()


def test_unknown_data_sets_are_refused() -> None:
    known = "digits, fashion_mnist, cifar10, cifar100, imagenet100, folder"
    assert ", ".join(dataset_names()) == known
    with pytest.raises(ValueError, match=f"unknown data set 'MNIST'; known: {known}"):
        check_data(replace(DIGITS, dataset="MNIST"))


# --- ImageNet-100


def test_imagenet100(tmp_path: Path) -> None:
    """Its hundred classes among others, one colour each."""
    classes = imagenet100_classes()
    assert list(classes) == sorted(set(classes)) and len(classes) == 100
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes)
    for label, name in enumerate((*classes, "n99999999")):
        for part, count in (("train", 2), ("val", 1)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (12, 10 + i), (2 * label, 9, 9))
                image.save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "test" / "flat").mkdir(parents=True)  # ImageNet's test images have no labels
    config = DataConfig(
        dataset="imagenet100", data_dir=str(tmp_path), image_size=8, in_memory="no", num_workers=0
    )
    data = load_data(config, CPU)
    assert (len(data.train), len(data.test), data.in_channels) == (200, 100, 3)
    assert data.class_names == classes
    images, labels = all_of(data.test)
    assert images.shape == (100, 3, 8, 8) and labels.tolist() == list(range(100))
    red = (images[:, 0].double() * data.std[0] + data.mean[0]) * 255
    expected = (2.0 * labels.double())[:, None, None].expand(-1, 8, 8)
    torch.testing.assert_close(red, expected, atol=1e-3, rtol=0)
    shutil.rmtree(tmp_path / "val" / classes[41])
    with pytest.raises(ValueError, match=f"val has no images .* of 1 of 100 .*: {classes[41]}"):
        check_data(config)
    with pytest.raises(ValueError, match=r"of 100 of 100 classes: n[0-9, n]* …") as caught:
        check_data(replace(config, data_dir=str(tmp_path / "train")))
    assert str(caught.value).count("n0") <= 5
