"""The batched RandAugment against torchvision's, operation by operation."""

import pytest
import torch
from dasvit.data.rand_augment import NUM_BINS, OPERATIONS, apply_operation, rand_augment
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, _apply_op

UNSIGNED = {"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"}


def images(channels: int = 3, size: tuple[int, int] = (24, 20), batch: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, channels, 5, 4, generator=draw)
    big = torch.nn.functional.interpolate(smooth, size, mode="bilinear")
    noise = 0.1 * torch.rand(batch, channels, *size, generator=draw)
    return ((0.9 * big + noise) * 255).to(torch.uint8)


def torchvisions(name: str, image: Tensor, sign: float, magnitude: int) -> Tensor:
    meta = RandAugment()._augmentation_space(NUM_BINS, (image.shape[1], image.shape[2]))
    magnitudes, signed = meta[name]
    value = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
    value *= sign if signed else 1.0
    return _apply_op(image, name, value, InterpolationMode.NEAREST, None)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name: str, magnitude: int, channels: int) -> None:
    given = images(channels)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    got = apply_operation(name, given, signs, magnitude)
    wanted = torch.stack(
        [torchvisions(name, x, s, magnitude) for x, s in zip(given, signs.tolist(), strict=True)]
    )
    assert got.dtype == torch.uint8
    difference = (got.int() - wanted.int()).abs()
    if name in {"ShearX", "ShearY", "Rotate"}:
        # A position half way between two pixels may go to either of them.
        assert (difference > 1).float().mean() < 0.02
    else:
        assert difference.max() <= 1  # rounding


def test_names_are_torchvisions() -> None:
    assert set(OPERATIONS) == set(RandAugment()._augmentation_space(NUM_BINS, (8, 8)))
    assert set(OPERATIONS) >= UNSIGNED


def test_every_image_draws_for_itself() -> None:
    same = images(batch=1).repeat(64, 1, 1, 1)
    out = rand_augment(same, torch.Generator().manual_seed(3))
    kinds = {x.numpy().tobytes() for x in out}
    assert len(kinds) > 20
    assert torch.equal(same, images(batch=1).repeat(64, 1, 1, 1))  # the given ones stay


def test_equal_draws_give_equal_images() -> None:
    given = images()
    first, again, other = (
        rand_augment(given, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_equalize_of_one_value_is_left_alone() -> None:
    flat = torch.full((2, 1, 4, 4), 77, dtype=torch.uint8)
    for name in ("Equalize", "AutoContrast"):
        assert torch.equal(apply_operation(name, flat, torch.ones(2), 9), flat)
