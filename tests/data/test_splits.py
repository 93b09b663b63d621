"""Splits, held and streamed: order, shares, halves, determinism."""

import itertools
import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import all_of, as_keys, assert_equal, write_folder
from support.runs import DIGITS

import dasvit.data.stream
from dasvit.data.config import DataConfig
from dasvit.data.datasets import ImageData, load_data
from dasvit.data.splits import Split, TensorSplit, endless, split_half
from dasvit.data.stream import FolderSplit

CPU = torch.device("cpu")
KINDS = ["none", "shift", "crop_flip", "resized_crop", "rand"]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DIGITS, CPU)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("photos"), 8, size=(16, 16), mode="RGB")


def of(photos: Path, in_memory: str, **changes: Any) -> Split:
    """19 images."""
    base = DataConfig(dataset="folder", data_dir=str(photos), image_size=16, num_workers=0)
    split = load_data(replace(base, in_memory=in_memory, **changes), CPU).train
    return split.normalised_by((0.5,) * 3, (0.25,) * 3)


def test_channels_are_normalised_one_by_one() -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.7)
    config = replace(DIGITS, image_size=4)
    split = TensorSplit(images, torch.arange(6), mean=mean, std=std, config=config)
    found, _ = all_of(split)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(found[:, channel].double(), expected, atol=1e-6, rtol=1e-5)


# --- Order


@pytest.mark.parametrize("batch_size", [7, 100])
def test_shuffled_batches(digits: ImageData, batch_size: int) -> None:
    """Every image at most once, complete batches only; the same again from the same seed."""
    split = digits.train.subset(torch.arange(60))
    batches = list(split.batches(batch_size, seed=5))
    assert [len(y) for _, y in batches] == [min(batch_size, 60)] * max(1, 60 // batch_size)
    images, labels = all_of(split, batch_size, seed=5)
    label_of = dict(zip(as_keys(all_of(split)[0]), all_of(split)[1].tolist(), strict=True))
    keys = as_keys(images)
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(label_of)
    assert [label_of[key] for key in keys] == labels.tolist()
    assert keys != as_keys(all_of(split)[0])[: len(keys)]
    torch.rand(3)
    assert as_keys(all_of(split, batch_size, seed=5)[0]) == keys
    assert as_keys(all_of(split, batch_size, seed=6)[0]) != keys


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_batches_in_order_are_complete(photos: Path, in_memory: str) -> None:
    split = of(photos, in_memory)
    assert isinstance(split, TensorSplit if in_memory == "yes" else FolderSplit)
    assert [len(y) for _, y in split.batches(8)] == [8, 8, 2]
    images, labels = all_of(split)
    assert_equal(all_of(split, 8), (images, labels))
    index = torch.tensor([7, 3, 3, 15])
    assert len(split.subset(index)) == 4
    assert_equal(all_of(split.subset(index)), (images[index], labels[index]))


def test_split_half(digits: ImageData) -> None:
    whole = Counter(as_keys(all_of(digits.train)[0]))
    for fraction, size in ((0.5, 718), (0.25, 359)):
        weight, alpha = split_half(digits.train, fraction, 3)
        assert (len(weight), len(alpha)) == (1437 - size, size)
        halves = [Counter(as_keys(all_of(half)[0])) for half in (weight, alpha)]
        assert halves[0] + halves[1] == whole
        # Stratified: of every class its share, to within one image.
        counts = digits.train.targets.bincount() * size / 1437
        assert (alpha.targets.bincount() - counts).abs().max() < 1
    assert_equal(all_of(split_half(digits.train, 0.25, 3)[1]), all_of(alpha))
    other = split_half(digits.train, 0.25, 4)[1]
    assert not torch.equal(all_of(other)[0], all_of(alpha)[0])
    for fraction in (0.0001, 0.9999):
        with pytest.raises(
            ValueError, match=rf"{fraction:g} \(val_fraction, held_out\) leaves one part"
        ):
            split_half(digits.train, fraction, 0)


def test_endless_shuffles_anew_in_every_pass(digits: ImageData) -> None:
    split = digits.train.subset(torch.arange(20))
    everything = set(as_keys(all_of(split)[0]))
    stream = [x for x, _ in itertools.islice(endless(split, 5, 0, "order", 2), 12)]
    passes = [as_keys(torch.cat(stream[i : i + 4])) for i in (0, 4, 8)]
    assert all(set(keys) == everything and len(keys) == 20 for keys in passes)
    assert passes[0] != passes[1] != passes[2]
    again = [x for x, _ in itertools.islice(endless(split, 5, 0, "order", 2), 12)]
    assert torch.equal(torch.cat(again), torch.cat(stream))
    other = next(endless(split, 5, 0, "order", 3))[0]
    assert not torch.equal(other, stream[0])


# --- One augmentation path


@pytest.mark.parametrize("augment", KINDS)
def test_held_and_streamed_images_make_the_same_batches(photos: Path, augment: str) -> None:
    """From the seed alone; global generators, the number of workers and the share of a process
    change nothing."""
    held, streamed = (of(photos, how, augment=augment) for how in ("yes", "no"))
    state = torch.get_rng_state()
    first = all_of(held, 6, seed=5)
    assert_equal(all_of(held, 6, seed=5), first)
    assert_equal(all_of(streamed, 6, seed=5), first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # processes forked beside threads
        assert_equal(all_of(of(photos, "no", augment=augment, num_workers=2), 6, seed=5), first)
    assert torch.equal(torch.get_rng_state(), state)
    other = all_of(held, 6, seed=6)
    assert not torch.equal(other[0], first[0])
    plain = set(as_keys(all_of(held)[0]))
    changed = [key not in plain for key in as_keys(first[0])]
    assert sum(changed) > 12 if augment != "none" else not any(changed)
    assert_equal(all_of(held), all_of(streamed))
    assert plain == set(as_keys(all_of(held)[0]))  # evaluation sees the images as they are


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("seed", [None, 3])
def test_shares_are_rows_of_the_whole_batches(
    photos: Path, in_memory: str, seed: int | None
) -> None:
    split = of(photos, in_memory, augment="rand")
    whole = list(split.batches(8, seed=seed))  # in order, the last batch has two images
    for rank in range(3):
        share = split.batches(8, seed=seed, share=(rank, 3))
        wanted = [(x[rank::3], y[rank::3]) for x, y in whole if len(y) > rank]
        for mine, its in zip(share, wanted, strict=True):
            assert_equal(mine, its)


# --- Files that go bad during a run


def test_an_image_that_goes_bad_during_a_run_is_replaced(tmp_path: Path) -> None:
    split = of(write_folder(tmp_path / "d", 8, mode="RGB"), "no", image_size=8)
    before = all_of(split)[0]
    Path(split.samples[0][0]).write_bytes(b"gone bad")  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="is not a readable image"):
        after = all_of(split)[0]
    assert torch.equal(after, torch.cat([before[1:2], before[1:]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_gone_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(dasvit.data.stream, "MOST_IN_A_ROW", 3)
    split = FolderSplit(
        samples=tuple((str(tmp_path / f"{i}.png"), 0) for i in range(9)),
        channels=3,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        config=replace(DIGITS, num_workers=workers),
        device=CPU,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="3 images in a row cannot be read any") as caught:
            all_of(split)
    assert "2.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("message", ["worker (pid 7) is killed", "Traceback:\nno shared memory"])
def test_workers_without_memory_end_the_run_in_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError(message)

    split = of(photos, "no")
    monkeypatch.setattr(dasvit.data.stream, "DataLoader", lambda *args, **options: map(fail, [0]))
    last = message.splitlines()[-1]
    with pytest.raises(ValueError, match=f"failed .{re.escape(last)}.;.*--num-workers 0$"):
        all_of(split)
    message = "a bug"
    with pytest.raises(RuntimeError, match="a bug"):
        all_of(split)
