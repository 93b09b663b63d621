"""ImageNet-100: its classes, images that stream from files, and files that are broken."""

import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.batches import all_of, as_keys, assert_equal, shifted

from dasvit.data.config import DataConfig
from dasvit.data.datasets import check_data, imagenet100_classes, load_data
from dasvit.data.splits import Split
from dasvit.data.stream import FolderSplit

CPU = torch.device("cpu")
IMAGENET = DataConfig(
    dataset="imagenet100", image_size=8, augment="none", num_workers=0, in_memory="no"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of folders lie here, not at home."""
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training images and one validation image a class, of different sizes; the colour tells
    the class."""
    root = tmp_path_factory.mktemp("imagenet100")
    random = np.random.default_rng(0)
    for part, count in (("train", 2), ("val", 1)):
        for label, wnid in enumerate(imagenet100_classes()):
            folder = root / part / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (10 + i, 12, 3), dtype=np.uint8)
                pixels[..., 0] = 2 * label
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def test_the_class_list() -> None:
    classes = imagenet100_classes()
    assert len(classes) == len(set(classes)) == 100
    assert list(classes) == sorted(classes)
    assert all(len(c) == 9 and c[0] == "n" and c[1:].isdigit() for c in classes)


def test_imagenet100(imagenet: Path) -> None:
    data = load_data(replace(IMAGENET, data_dir=str(imagenet)), CPU)
    assert (len(data.train), len(data.test), data.num_classes, data.in_channels) == (
        200,
        100,
        100,
        3,
    )
    assert data.class_names == imagenet100_classes()
    images, labels = all_of(data.test)
    assert images.shape == (100, 3, 8, 8)
    assert labels.tolist() == list(range(100))
    red = (images[:, 0].double() * data.std[0] + data.mean[0]) * 255
    torch.testing.assert_close(
        red, (2.0 * labels.double())[:, None, None].expand(-1, 8, 8), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_the_number_of_workers_does_not_change_the_batches(imagenet: Path, augment: str) -> None:
    def split(workers: int) -> Split:
        config = replace(IMAGENET, data_dir=str(imagenet), augment=augment, num_workers=workers)
        return load_data(config, CPU).train.subset(torch.arange(0, 200, 5))

    assert isinstance(split(0), FolderSplit)
    assert len(split(0)) == 40
    for seed in (None, 3):
        left, right = (all_of(split(workers), 12, seed=seed) for workers in (0, 2))
        assert_equal(left, right)
        assert len(left[1]) == (40 if seed is None else 36)
    if augment == "none":
        assert set(as_keys(all_of(split(0), 40, seed=3)[0])) == set(as_keys(all_of(split(0))[0]))
    assert not torch.equal(all_of(split(0), 12, seed=4)[0], left[0])


def test_file_augmentation_is_a_move_and_a_flip(imagenet: Path) -> None:
    config = replace(IMAGENET, data_dir=str(imagenet), image_size=16, augment="crop_flip")
    split = load_data(config, CPU).train.subset(torch.arange(50))
    plain, _ = all_of(split)
    data = load_data(config, CPU)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    plain = plain * std + mean
    found, labels = all_of(split, 50, seed=0)
    found = found * std + mean
    seen = set()
    for image, label in zip(found, labels, strict=True):
        fitting = [
            (down, right, flip)
            for down, right in itertools.product(range(-2, 3), repeat=2)
            for flip in (False, True)
            for source in plain[2 * label : 2 * label + 2]
            if torch.allclose(shifted(source, down, right, flip), image, atol=1e-5)
        ]
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert len(seen) > 20


def test_a_missing_class_is_named(imagenet: Path, tmp_path: Path) -> None:
    classes = imagenet100_classes()
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for wnid in classes:
            (tmp_path / part / wnid).mkdir()
    config = replace(IMAGENET, data_dir=str(tmp_path))
    check_data(config)
    with pytest.raises(ValueError, match=classes[0]):  # a class without an image
        load_data(config, CPU)
    (tmp_path / "val" / classes[41]).rmdir()
    with pytest.raises(ValueError, match="val lacks 1 of 100 class folders") as caught:
        check_data(config)
    assert f"({classes[41]})" in str(caught.value)
    with pytest.raises(ValueError, match="lacks 100 of 100 class folders") as caught:
        check_data(replace(config, data_dir=str(tmp_path / "train")))
    assert str(caught.value).count("n0") <= 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_gone_ends_the_run_in_one_line(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("dasvit.data.stream.MOST_IN_A_ROW", 3)
    split = FolderSplit(
        [(str(tmp_path / f"{i}.png"), 0) for i in range(9)],
        channels=3,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        config=replace(IMAGENET, num_workers=workers),
        device=CPU,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="3 images in a row cannot be read any") as caught:
            all_of(split)
    assert "2.png" in str(caught.value)
    assert "\n" not in str(caught.value)
