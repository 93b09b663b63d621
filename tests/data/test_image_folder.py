"""Folders of images: layouts, what is refused, what cannot be read, in memory and streamed."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.batches import all_of, write_folder, write_image

import dasvit.data.image_folder
from dasvit.data.config import DataConfig
from dasvit.data.datasets import check_data, load_data
from dasvit.data.image_folder import FoundImages, find_class_images
from dasvit.data.images import open_image, square_pixels
from dasvit.data.splits import TensorSplit
from dasvit.data.stream import FolderSplit

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "owl")


def config(root: Path, **changes: Any) -> DataConfig:
    base = DataConfig(
        dataset="folder", data_dir=str(root), image_size=8, augment="none", num_workers=0
    )
    return replace(base, **changes)


# --- Layouts


def listed(root: Path, fraction: float = 0.2) -> FoundImages:
    found = find_class_images(root, test_fraction=fraction)
    assert not {path for path, _ in found.train} & {path for path, _ in found.test}
    for part in (found.train, found.test):
        assert all(Path(path).relative_to(root) for path, _ in part)
        assert list(part) == sorted(part, key=lambda sample: (sample[1], sample[0]))
    return found


@pytest.mark.parametrize(
    ("parts", "test", "wanted"),
    [
        ({"train": 4, "val": 2}, "val", (12, 6)),
        ({"train": 4, "val": 2, "test": 3}, "test", (12, 9)),  # test goes first
        ({"train": 10}, "train", (24, 6)),
        ({".": 10}, ".", (24, 6)),
    ],
)
def test_layouts(tmp_path: Path, parts: dict[str, int], test: str, wanted: tuple[int, int]) -> None:
    for name, count in parts.items():
        write_folder(tmp_path / name, count)
    found = listed(tmp_path)
    assert (len(found.train), len(found.test)) == wanted
    assert found.classes == CLASSES
    assert [label for _, label in found.test] == sorted([0, 1, 2] * (wanted[1] // 3))
    assert all((tmp_path / test) in Path(path).parents for path, _ in found.test)


def test_the_same_images_are_held_out_always(tmp_path: Path) -> None:
    found = listed(write_folder(tmp_path / "d", 10))
    names = [Path(path).relative_to(tmp_path / "d").as_posix() for path, _ in found.test]
    # No version may learn from another one's test images.
    kept = ("cat/01", "cat/02", "dog/07", "dog/08", "owl/07", "owl/08")
    assert names == [f"{name}.png" for name in kept]
    assert len(listed(tmp_path / "d", 0.5).test) == 15


def test_what_is_no_image_of_a_class_is_not_listed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d")
    write_image(root / ".thumbnails" / "a.png")
    write_image(root / "cat" / ".hidden.png")
    write_image(root / "cat" / ".hidden" / "a.png")
    (root / "cat" / "notes.txt").write_text("a cat")
    write_image(root / "cat" / "deeper" / "one.JPEG")
    write_image(root / "dog" / "film.gif")
    write_image(tmp_path / "elsewhere" / "two.png")
    (root / "owl" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "owl" / "circle").symlink_to(root / "owl")
    found = listed(root)
    assert found.classes == CLASSES
    assert len(found.train) + len(found.test) == 17
    names = {Path(path).relative_to(root).as_posix() for path, _ in (*found.train, *found.test)}
    assert {"cat/deeper/one.JPEG", "owl/more/two.png"} <= names
    for in_memory in ("yes", "no"):  # an image in a format that is not read
        assert load_data(config(root, in_memory=in_memory), CPU).skipped == (
            str(root / "dog" / "film.gif"),
        )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        for i in range(2):
            write_image(tmp_path / name / f"{i}.png")
    assert listed(tmp_path).classes == ("bus", "train")


# --- What is refused


@pytest.mark.parametrize(
    ("folders", "images", "message"),
    [
        ((), (), "there is no folder"),
        ((), (".",), "has no class folders"),
        ((), ("loose.png",), "has no class folders"),
        ((), ("train/a.png", "test/a.png"), "has no class folders"),
        ((), ("cat/a.png",), "one class only .cat."),
        ((".",), ("ant",), "has no images .* of 1 of 4 classes: ant"),
        ((".",), ("ant/a.png",), "class ant has a single image"),
        (("train", "val"), ("val/emu/a.png",), "must hold the same classes; only one has emu"),
    ],
)
def test_bad_folders(
    tmp_path: Path, folders: tuple[str, ...], images: tuple[str, ...], message: str
) -> None:
    root = tmp_path / "d"
    for name in folders:
        write_folder(root / name)
    for name in images:
        if name.endswith(".png"):
            write_image(root / name)
        else:
            (root / name).mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        check_data(config(root))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="leave --download away"):
        check_data(config(tmp_path, download=True))


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_what_cannot_be_read(tmp_path: Path, in_memory: str) -> None:
    """Some images are left out and named; a class without any is refused, with the reason."""
    root = write_folder(tmp_path / "d", 10)
    whole = (root / "cat" / "00.png").read_bytes()
    (root / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    (root / "owl" / "03.png").write_bytes(b"")
    (root / "owl" / "04.png").unlink()
    (root / "owl" / "04.png").symlink_to(tmp_path / "nowhere.png")
    odd = os.fsencode(root / "dog") + b"/gr\xfcn.png"  # a name that is not UTF-8
    Path(os.fsdecode(odd)).write_bytes(b"")
    data = load_data(config(root, in_memory=in_memory), CPU)
    names = sorted(Path(path).name for path in data.skipped)
    assert names == ["00.png", "03.png", "04.png", r"gr\xfcn.png"]
    assert len(data.train) + len(data.test) == 27
    assert len(all_of(data.train)[1]) == len(data.train)
    for path in (root / "owl").iterdir():
        path.unlink()
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path, format="tiff")
    message = "none of the training images of class owl can be read.*floating-point"
    with pytest.raises(ValueError, match=message) as caught:
        load_data(config(root, in_memory=in_memory), CPU)
    assert "\n" not in str(caught.value)


def test_uneven_classes_are_told(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(config(root), CPU)
    for i in range(12):
        write_image(root / "owl" / f"more {i}.png")
    with pytest.warns(UserWarning, match="images are 1 of class .* and 11 of class owl"):
        load_data(config(root), CPU)


# --- Reading


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_grey_or_colour_is_read_off_the_training_images(tmp_path: Path, in_memory: str) -> None:
    root = write_folder(tmp_path / "train", 5).parent
    write_folder(root / "test", 2, mode="RGB")
    grey = load_data(config(root, in_memory=in_memory), CPU)
    assert (grey.in_channels, grey.class_names) == (1, CLASSES)
    assert all_of(grey.test)[0].shape == (6, 1, 8, 8)
    write_image(root / "train" / "dog" / "00.png", mode="RGB")
    colour = load_data(config(root, in_memory=in_memory), CPU)
    assert colour.in_channels == len(colour.mean) == 3
    assert next(colour.train.batches(4, seed=0))[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(("size", "image_size"), [((13, 17), 8), ((16, 16), 16), ((16, 16), 32)])
def test_streamed_and_held_images_are_the_same(
    tmp_path: Path, size: tuple[int, int], image_size: int
) -> None:
    """Normalised by the training images' statistics; by those of before where they are enlarged."""
    root = write_folder(tmp_path / "d", 10, size=size, mode="RGB")
    changes = {"image_size": image_size, "in_memory": "no"}
    streamed = load_data(config(root, **changes), CPU)
    held = load_data(config(root, **changes | {"in_memory": "yes"}), CPU)
    if image_size <= 16:
        images = all_of(streamed.train)[0]
        assert images.mean().abs() < 1e-3 and abs(images.std().item() - 1) < 1e-2
    assert streamed.mean == pytest.approx(held.mean, abs=1e-3)
    assert streamed.std == pytest.approx(held.std, rel=2e-3)
    levels = 1.1 if image_size > 16 else 0.01  # held small images are enlarged in floats
    for mine, its in ((held.train, streamed.train), (held.test, streamed.test)):
        alike = mine.normalised_by(streamed.mean, streamed.std)
        (x, y), (images, labels) = all_of(alike), all_of(its)
        assert torch.equal(y, labels)
        torch.testing.assert_close(x, images, atol=levels / 255 / min(streamed.std), rtol=0)


def test_auto_is_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "d")
    assert isinstance(load_data(config(root), CPU).train, TensorSplit)
    monkeypatch.setattr(dasvit.data.image_folder, "IN_MEMORY_BYTES", 15 * 3 * 64 - 1)
    assert isinstance(load_data(config(root), CPU).train, FolderSplit)


def test_a_record_is_kept_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "d", 6)
    streamed = config(root, in_memory="no")
    first = load_data(streamed, CPU)
    [record] = (cache / "folders").iterdir()
    assert json.loads(record.read_text())["bad"] == {}
    verify, calls = dasvit.data.image_folder._verify, []

    def counted(*args: Any) -> dict[str, Any]:
        calls.append(args)
        return verify(*args)

    monkeypatch.setattr(dasvit.data.image_folder, "_verify", counted)
    assert load_data(streamed, CPU).mean == first.mean
    assert not calls
    (root / "cat" / "00.png").write_bytes(b"broken since")
    assert len(load_data(streamed, CPU).skipped) == 1
    assert len(calls) == 1
    record.write_text("{")  # a torn record is none
    (root / "cat" / "00.png").unlink()
    load_data(streamed, CPU)
    assert len(calls) == 2


# --- Image files


def test_images_are_turned_as_their_exif_data_say(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = square_pixels(open_image(str(tmp_path / "a.png")), 1, None)
    assert np.array_equal(found[0], np.rot90(pixels, -1))


def test_of_a_long_strip_the_middle_is_taken(tmp_path: Path) -> None:
    """Without a picture of 8 by 480,000 on the way."""
    row = np.arange(60_000) // 235
    for name, pixels in (("wide", row[None]), ("tall", row[:, None])):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        found = square_pixels(open_image(str(tmp_path / f"{name}.png")), 1, 8)
        assert found.shape == (1, 8, 8)
        assert set(found.flatten().tolist()) <= {127, 128}
