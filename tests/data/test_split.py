"""Splits in memory: normalisation, order, halves and augmentation."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.batches import all_of, as_keys, assert_equal, shifted
from support.runs import DIGITS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dasvit.data.batch import send
from dasvit.data.datasets import ImageData, load_data
from dasvit.data.splits import TensorSplit, endless, split_half

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DIGITS, CPU)


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


@pytest.mark.parametrize("batch_size", [1, 7, 60, 100])
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


def test_batches_in_order_are_complete(digits: ImageData) -> None:
    split = digits.train.subset(torch.arange(50))
    assert [len(y) for _, y in split.batches(16)] == [16, 16, 16, 2]
    whole = all_of(split, 50)
    assert_equal(all_of(split, 16), whole)


def test_subset_keeps_the_order_of_its_index(digits: ImageData) -> None:
    images, labels = all_of(digits.test)
    index = torch.tensor([7, 3, 3, 200])
    found = all_of(digits.test.subset(index))
    assert torch.equal(found[0], images[index])
    assert torch.equal(found[1], labels[index])
    assert len(digits.test.subset(index)) == 4


def test_order_leaves_the_global_generator_alone(digits: ImageData) -> None:
    state = torch.get_rng_state()
    split = load_data(replace(DIGITS, augment="crop_flip"), CPU).train
    all_of(split, seed=1)
    split_half(split, 0.5, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_split_half(digits: ImageData) -> None:
    whole = Counter(as_keys(all_of(digits.train)[0]))
    for fraction, size in ((0.5, 718), (0.25, 359)):
        weight, alpha = split_half(digits.train, fraction, 3)
        assert (len(weight), len(alpha)) == (1437 - size, size)
        halves = [Counter(as_keys(all_of(half)[0])) for half in (weight, alpha)]
        assert halves[0] + halves[1] == whole
    again = split_half(digits.train, 0.25, 3)
    assert torch.equal(all_of(again[1])[0], all_of(alpha)[0])
    other = split_half(digits.train, 0.25, 4)
    assert not torch.equal(all_of(other[1])[0], all_of(alpha)[0])


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_a_half_without_images_is_refused(digits: ImageData, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"val_fraction={fraction} leaves one half of 1437"):
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


# --- Augmentation


@pytest.mark.parametrize("augment", ["shift", "crop_flip"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 17)])
def test_augmentation_is_a_loop_over_images(augment: str, shape: tuple[int, int, int]) -> None:
    """Each image is one of the moves by up to an eighth; all moves come; the labels go along."""
    channels, side, _ = shape
    reach = side // 8
    # No pixel is black, so that no two moves look alike.
    images = torch.randint(1, 256, (400, *shape), dtype=torch.uint8)
    config = replace(DIGITS, image_size=side, augment=augment)
    split = TensorSplit(
        images, torch.arange(400), mean=(0.0,) * channels, std=(1.0,) * channels, config=config
    )
    found, labels = all_of(split, 400, seed=2)
    seen = Counter()
    moves = itertools.product(range(-reach, reach + 1), repeat=2)
    flips = (False, True) if augment == "crop_flip" else (False,)
    moves = [(*move, flip) for move in moves for flip in flips]
    for image, label in zip((found * 255).round().to(torch.uint8), labels, strict=True):
        fitting = [move for move in moves if torch.equal(shifted(images[label], *move), image)]
        assert len(fitting) == 1
        seen[fitting[0]] += 1
    assert set(seen) == set(moves)
    assert max(seen.values()) < 4 * 400 / len(moves)
    # Evaluation sees the images as they are.
    assert torch.equal((all_of(split, 400)[0] * 255).round().to(torch.uint8), images)


def test_augmentation_comes_from_the_seed() -> None:
    split = load_data(replace(DIGITS, augment="crop_flip"), CPU).train.subset(torch.arange(40))
    first = all_of(split, 10, seed=1)
    assert_equal(all_of(split, 10, seed=1), first)
    assert not torch.equal(all_of(split, 10, seed=2)[0], first[0])


def test_no_augmentation_is_none(digits: ImageData) -> None:
    split = digits.train.subset(torch.arange(40))
    assert set(as_keys(all_of(split, 40, seed=1)[0])) == set(as_keys(all_of(split)[0]))


# --- The host does not wait for the device

KINDS = ["none", "shift", "crop_flip", "resized_crop", "rand"]


def _on(device: str, augment: str) -> TensorSplit:
    config = replace(DIGITS, image_size=12, augment=augment)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=draw).to(device)
    labels = torch.arange(40, device=device)
    return TensorSplit(images, labels, mean=(0.5,) * 3, std=(0.5,) * 3, config=config)


class _Copies(TorchDispatchMode):
    """Whether each copy from the CPU to another device may be waited for by that device alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and isinstance(args[0], Tensor) and args[0].is_cpu != out.is_cpu:
            self.found.append((kwargs or {}).get("non_blocking", False))
        return out


@pytest.mark.parametrize("augment", KINDS)
def test_what_is_drawn_is_sent_without_waiting(augment: str) -> None:
    split = _on("meta", augment)
    with _Copies() as copies:
        assert len(list(split.batches(20, seed=1))) == 2
    # The order, and a batch's draws; as few for RandAugment's fourteen operations as for one.
    sent = {"none": 0, "shift": 2, "crop_flip": 2, "resized_crop": 1, "rand": 6}
    assert copies.found == [True] * (1 + 2 * sent[augment])
    with _Copies() as copies:
        torch.zeros(3).to("meta")
    assert copies.found == [False]


def test_what_is_sent_to_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from memory that is not pinned is waited for whatever one asks for."""
    calls: list[object] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, *to, **how: calls.append((to, how)) or self)
    gpu = torch.device("cuda", 1)
    send(torch.arange(3), gpu)
    assert calls == ["pinned", ((gpu,), {"non_blocking": True})]
    calls.clear()
    send(torch.arange(3), CPU)
    assert "pinned" not in calls


@pytest.mark.parametrize("augment", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_not_waited_for(augment: str) -> None:
    split, plain = _on("cuda", augment), _on("cpu", augment)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(split.batches(20, seed=1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (expected, wanted) in zip(found, plain.batches(20, seed=1), strict=True):
        # Between two values, or two pixels, either device may round in its own way.
        differing = (images.cpu() - expected).abs() > 1e-5
        assert differing.float().mean() <= (0.02 if augment in ("resized_crop", "rand") else 0.0)
        assert torch.equal(labels.cpu(), wanted)
