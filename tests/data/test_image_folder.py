"""Folders of images: layouts, what is refused, what cannot be read, in memory and streamed."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import dasvit.data.folder_data
import numpy as np
import pytest
import torch
from dasvit.data.image_folder import find_images
from PIL import Image
from support.batches import all_of, assert_equal

from dasvit.data.config import DataConfig
from dasvit.data.datasets import check_data, load_data
from dasvit.data.splits import TensorSplit
from dasvit.data.stream import FolderSplit
from dasvit.run.seed import generator

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "L", seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, count: int = 5, **options: object) -> Path:
    for c, name in enumerate(CLASSES):
        for i in range(count):
            write(folder / name / f"{i:02d}.png", seed=100 * c + i, **options)  # type: ignore[arg-type]
    return folder


def config(root: Path, **changes: object) -> DataConfig:
    base = DataConfig(dataset="folder", data_dir=str(root), image_size=8, augment="crop_flip")
    return replace(base, **changes)


# --- Layouts


def test_train_and_test(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "train", 4)
    fill(tmp_path / "d" / "val", 2)
    found = find_images(tmp_path / "d", test_fraction=0.2)
    assert found.classes == CLASSES
    assert (len(found.train), len(found.test)) == (12, 6)
    assert [label for _, label in found.test] == [0, 0, 1, 1, 2, 2]
    assert all("/val/" in path for path, _ in found.test)
    fill(tmp_path / "d" / "test", 3)
    assert len(find_images(tmp_path / "d", test_fraction=0.2).test) == 9  # test before val


@pytest.mark.parametrize("below", ["train", "."])
def test_a_fixed_stratified_part_is_held_out(tmp_path: Path, below: str) -> None:
    fill(tmp_path / "d" / below, 10)
    found = find_images(tmp_path / "d", test_fraction=0.2)
    assert (len(found.train), len(found.test)) == (24, 6)
    assert [label for _, label in found.test] == [0, 0, 1, 1, 2, 2]
    assert not {p for p, _ in found.train} & {p for p, _ in found.test}
    assert find_images(tmp_path / "d", test_fraction=0.2) == found
    assert len(find_images(tmp_path / "d", test_fraction=0.5).test) == 15


def test_what_is_hidden_or_no_image_is_not_listed(tmp_path: Path) -> None:
    fill(tmp_path / "d")
    write(tmp_path / "d" / ".thumbnails" / "a.png")
    write(tmp_path / "d" / "cat" / ".hidden.png")
    (tmp_path / "d" / "cat" / "notes.txt").write_text("a cat")
    write(tmp_path / "d" / "cat" / "deeper" / "one.JPEG")
    found = find_images(tmp_path / "d", test_fraction=0.2)
    assert found.classes == CLASSES
    assert len(found.train) + len(found.test) == 16


# --- What is refused


def refused(root: Path, text: str, **changes: object) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        check_data(config(root, **changes))
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "has no class folders")
    write(empty / "loose.png")
    refused(empty, "has no class folders")
    one = tmp_path / "one"
    write(one / "cat" / "a.png")
    refused(one, "one class only .cat.")
    hollow = fill(tmp_path / "hollow")
    (hollow / "ant").mkdir()
    refused(hollow, "class ant has no images")
    single = fill(tmp_path / "single")
    write(single / "ant" / "a.png")
    refused(single, "class ant has a single image")
    other = tmp_path / "other"
    fill(other / "train")
    fill(other / "val")
    write(other / "val" / "emu" / "a.png")
    refused(other, "must hold the same classes; only one has emu")


def test_all_of_a_class_unreadable(tmp_path: Path) -> None:
    root = fill(tmp_path / "d")
    for path in (root / "owl").iterdir():
        path.write_bytes(b"no image")
    for in_memory in ("yes", "no"):
        with pytest.raises(ValueError, match="none of the training images of class owl"):
            load_data(config(root, in_memory=in_memory), CPU)


# --- Reading


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_grey_or_colour_is_read_off_the_images(tmp_path: Path, in_memory: str) -> None:
    grey = load_data(config(fill(tmp_path / "grey"), in_memory=in_memory), CPU)
    assert (grey.in_channels, grey.class_names) == (1, CLASSES)
    mixed = fill(tmp_path / "mixed")
    write(mixed / "train_me.png", mode="RGB")  # not in a class: not an image of the set
    for i in range(5):
        write(mixed / "dog" / f"{i:02d}.png", mode="RGB", seed=i)
    colour = load_data(config(mixed, in_memory=in_memory), CPU)
    assert colour.in_channels == 3
    assert next(colour.train.batches(4, seed=0))[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_images_are_normalised_by_their_own_statistics(tmp_path: Path, in_memory: str) -> None:
    data = load_data(config(fill(tmp_path / "d", 10), in_memory=in_memory, num_workers=0), CPU)
    images, _ = all_of(data.train)
    assert images.mean().abs() < 1e-3
    assert abs(images.std().item() - 1) < 1e-2


def test_streamed_and_held_images_are_the_same(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", 6, size=(13, 17), mode="RGB")
    held = load_data(config(root, in_memory="yes"), CPU)
    streamed = load_data(config(root, in_memory="no", num_workers=0), CPU)
    assert isinstance(held.train, TensorSplit) and isinstance(streamed.train, FolderSplit)
    for left, right in ((held.train, streamed.train), (held.test, streamed.test)):
        (a, y), (b, z) = all_of(left), all_of(right)
        assert torch.equal(y, z)
        scale = torch.tensor(held.std) / torch.tensor(streamed.std)
        shift = (torch.tensor(held.mean) - torch.tensor(streamed.mean)) / torch.tensor(streamed.std)
        torch.testing.assert_close(
            a * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1), b, atol=1e-4, rtol=1e-4
        )


def test_auto_is_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "d")
    assert isinstance(load_data(config(root), CPU).train, TensorSplit)
    monkeypatch.setattr(dasvit.data.folder_data, "IN_MEMORY_BYTES", 15 * 3 * 64 - 1)
    assert isinstance(load_data(config(root), CPU).train, FolderSplit)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_unreadable_images_are_named_and_left_out(tmp_path: Path, in_memory: str) -> None:
    root = fill(tmp_path / "d", 10)
    whole = (root / "cat" / "00.png").read_bytes()
    (root / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    (root / "owl" / "03.png").write_bytes(b"")
    (root / "owl" / "04.png").unlink()
    (root / "owl" / "04.png").symlink_to(tmp_path / "nowhere.png")
    data = load_data(config(root, in_memory=in_memory, num_workers=0), CPU)
    assert sorted(Path(p).name for p in data.skipped) == ["00.png", "03.png", "04.png"]
    assert len(data.train) + len(data.test) == 27
    assert len(all_of(data.train)[1]) == len(data.train)


@pytest.mark.parametrize("image_size", [4, 16])
def test_statistics_are_alike_held_and_streamed(tmp_path: Path, image_size: int) -> None:
    """Of enlarged images, those of the images as they are."""
    root = fill(tmp_path / "d", 10)
    held, streamed = (
        load_data(config(root, image_size=image_size, in_memory=how), CPU) for how in ("yes", "no")
    )
    assert streamed.mean == pytest.approx(held.mean, abs=1e-3)
    assert streamed.std == pytest.approx(held.std, rel=2e-3)


def test_a_record_is_kept_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "d", 6)
    streamed = config(root, in_memory="no")
    first = load_data(streamed, CPU)
    [record] = (cache / "folders").iterdir()
    assert json.loads(record.read_text())["bad"] == []
    verify, calls = dasvit.data.folder_data._verify, []

    def counted(*args: object) -> dict:
        calls.append(args)
        return verify(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(dasvit.data.folder_data, "_verify", counted)
    assert load_data(streamed, CPU).mean == first.mean
    assert not calls
    (root / "cat" / "00.png").write_bytes(b"broken since")
    assert len(load_data(streamed, CPU).skipped) == 1
    assert len(calls) == 1
    record.write_text("{")  # a torn record is none
    (root / "cat" / "00.png").unlink()
    load_data(streamed, CPU)
    assert len(calls) == 2


def test_an_image_that_goes_bad_during_a_run_is_replaced(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", 6)
    data = load_data(config(root, in_memory="no", num_workers=0), CPU)
    before = all_of(data.train)
    first = Path(data.train._samples[0][0])  # type: ignore[attr-defined]
    first.write_bytes(b"gone bad")
    with pytest.warns(UserWarning, match="is not a readable image"):
        after = all_of(data.train)
    assert torch.equal(after[0][0], before[0][1])
    assert torch.equal(after[0][1:], before[0][1:])


# --- Batches


@pytest.mark.parametrize("augment", ["shift", "crop_flip", "resized_crop", "rand"])
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_same_seed_same_batches(tmp_path: Path, in_memory: str, augment: str) -> None:
    root = fill(tmp_path / "d", 8, size=(12, 12), mode="RGB")
    given = config(root, in_memory=in_memory, augment=augment, image_size=12, num_workers=0)
    split = load_data(given, CPU).train
    first, again, other = (all_of(split, 4, seed=seed) for seed in (5, 5, 6))
    assert_equal(first, again)
    assert not torch.equal(first[0], other[0])
    order = torch.randperm(len(split), generator=generator(5))
    plain = all_of(split)[1]
    assert torch.equal(first[1], plain[order[: len(first[1])]])  # labels stay with their images
    assert not torch.equal(first[0], all_of(split)[0][order[: len(first[1])]])


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "d", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # processes forked beside threads
        runs = [
            all_of(
                load_data(config(root, in_memory="no", augment="rand", num_workers=n), CPU).train,
                4,
                seed=1,
            )
            for n in (0, 2)
        ]
    assert_equal(*runs)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("seed", [None, 3])
def test_shares_are_rows_of_the_whole_batches(
    tmp_path: Path, in_memory: str, seed: int | None
) -> None:
    root = fill(tmp_path / "d", 8)
    given = config(root, in_memory=in_memory, augment="rand", num_workers=0)
    split = load_data(given, CPU).train
    whole = list(split.batches(6, seed=seed))
    shares = [list(split.batches(6, seed=seed, share=(rank, 3))) for rank in range(3)]
    for number, (images, labels) in enumerate(whole):
        for rank in range(3):
            assert torch.equal(shares[rank][number][0], images[rank::3])
            assert torch.equal(shares[rank][number][1], labels[rank::3])
