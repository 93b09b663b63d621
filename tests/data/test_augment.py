"""Augmentation of a batch against image by image, torchvision's and written out."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.batches import shifted
from support.runs import DIGITS
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.autoaugment import RandAugment, _apply_op

from dasvit.data import augment as module
from dasvit.data.augment import OPERATIONS, apply_operation, augment, cut_box, draw_augmentation
from dasvit.data.batch import send
from dasvit.data.splits import TensorSplit

KINDS = ["none", "shift", "crop_flip", "resized_crop", "rand"]
CPU = torch.device("cpu")


def pictures(channels: int = 3, side: int = 24, batch: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, channels, 5, 4, generator=draw)
    big = torch.nn.functional.interpolate(smooth, (side, side), mode="bilinear")
    noise = 0.1 * torch.rand(batch, channels, side, side, generator=draw)
    return ((0.9 * big + noise) * 255).to(torch.uint8)


def torchvisions(name: str, image: Tensor, sign: float) -> Tensor:
    """By the first version of its transforms, at its own magnitude."""
    whole = RandAugment()
    size = (image.shape[1], image.shape[2])
    magnitudes, signed = whole._augmentation_space(whole.num_magnitude_bins, size)[name]
    value = float(magnitudes[whole.magnitude]) if magnitudes.ndim else 0.0
    return _apply_op(image, name, value * (sign if signed else 1), InterpolationMode.NEAREST, None)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str) -> None:
    for channels, sign in itertools.product((1, 3), (-1.0, 1.0)):
        given = pictures(channels)
        got = apply_operation(name, given, sign)
        wanted = torch.stack([torchvisions(name, image, sign) for image in given])
        assert got.dtype == torch.uint8
        rounding = name in ("Sharpness", "AutoContrast", "Color")
        assert (got.int() - wanted.int()).abs().max() <= rounding
        assert name == "Identity" or not torch.equal(got, given) or (name, channels) == ("Color", 1)


def test_rand_augment_is_a_loop_over_images() -> None:
    given = pictures(batch=64)
    draws = draw_augmentation("rand", 64, 24, torch.Generator().manual_seed(3))
    assert len({tuple(row) for row in draws["operations"].flatten(1).tolist()}) > 50
    found = augment(given, draws)
    rest = {name: drawn for name, drawn in draws.items() if name != "operations"}
    wanted = augment(given, rest)
    for image, drawn, got in zip(wanted, draws["operations"].tolist(), found, strict=True):
        for which, sign in drawn:
            image = torchvisions(OPERATIONS[which], image, 2.0 * sign - 1)
        assert ((image.int() - got.int()).abs() > 1).float().mean() < 0.01


@pytest.mark.parametrize(("kind", "shape"), [("shift", (1, 8, 8)), ("crop_flip", (3, 17, 17))])
def test_every_image_moves_by_itself(kind: str, shape: tuple[int, int, int]) -> None:
    """Each is one of the moves by up to an eighth; all moves come, equally often."""
    reach = shape[1] // 8
    # No pixel is black, so that no two moves look alike.
    images = torch.randint(1, 256, (400, *shape), dtype=torch.uint8)
    found = augment(images, draw_augmentation(kind, 400, shape[1], torch.Generator()))
    moves = list(
        itertools.product(
            *(range(-reach, reach + 1),) * 2, (False, True) if kind == "crop_flip" else (False,)
        )
    )
    seen = Counter()
    for image, got in zip(images, found, strict=True):
        [fitting] = [move for move in moves if torch.equal(shifted(image, *move), got)]
        seen[fitting] += 1
    assert set(seen) == set(moves)
    assert max(seen.values()) < 4 * 400 / len(moves)


def test_resized_crops_are_spread_as_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = draw_augmentation("resized_crop", 3000, 64, torch.Generator())
    assert 0.45 < draws["mirror"].float().mean() < 0.55
    torch.manual_seed(0)
    boxes: list[list[int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(module.V, "resized_crop", lambda x, *box, antialias: boxes.append([*box[:4]]))
        for box in draws["box"].tolist():
            cut_box(torch.empty(3, 400, 400), box, 64)
    top, left, height, width = torch.tensor(boxes).double().T / 400
    area, ratio = height * width, width / height
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1
    assert 0.079 < area.min() < 0.1 and 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.34
    whole = v2.RandomResizedCrop(64)
    theirs = [whole.make_params([torch.empty(3, 400, 400)]) for _ in range(3000)]
    for mine, name, scale in ((top, "top", 400), (width, "width", 400), (height, "height", 400)):
        expected = torch.tensor([float(one[name]) for one in theirs]) / scale
        assert mine.mean().item() == pytest.approx(expected.mean().item(), abs=0.03)
        assert mine.std().item() == pytest.approx(expected.std().item(), abs=0.03)
    # Of a long image too, the box lies inside; its pixels are torchvision's.
    image, box = pictures(side=40)[0, :, :10], [0.3, 0.9, 0.9, 0.5, 0.1, 0.5]
    side = round(math.sqrt((0.08 + 0.1 * 0.92) * 400))  # the second area: the first is too tall
    place = int(0.9 * (11 - side)), int(0.3 * (41 - side))
    wanted = v2.functional.resized_crop(image, *place, side, side, [16, 16], antialias=True)
    assert torch.equal(cut_box(image, box, 16), wanted)
    assert cut_box(image, [0.3, 0.9, 0.9, 0.5], 16).shape == (3, 16, 16)


# --- The host does not wait for the device


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


def held(device: str, kind: str) -> TensorSplit:
    config = replace(DIGITS, image_size=12, augment=kind)
    images = pictures(side=12, batch=40).to(device)
    labels = torch.arange(40, device=device)
    return TensorSplit(images, labels, mean=(0.5,) * 3, std=(0.5,) * 3, config=config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_not_waited_for(kind: str) -> None:
    split, plain = held("cuda", kind), held("cpu", kind)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(split.batches(20, seed=1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (expected, wanted) in zip(found, plain.batches(20, seed=1), strict=True):
        # Between two values either device may round in its own way.
        differing = (images.cpu() - expected).abs() > 1e-5
        assert differing.float().mean() <= (0.02 if kind in ("resized_crop", "rand") else 0.0)
        assert torch.equal(labels.cpu(), wanted)
