"""Seeds and random states."""

import random

import numpy as np
import pytest
import torch

from dasvit.run.seed import (
    derive_seed,
    get_rng_state,
    seed_everything,
    set_rng_state,
)

CPU = torch.device("cpu")


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    """Golden values: a change would give every recorded run another order of its data."""
    assert derive_seed(0) == 7210762507766007076
    assert derive_seed(7, "order", 3) == 6409098265416878229


def test_derived_seeds_differ_and_fit() -> None:
    parts = [(s, name, e) for s in range(5) for name in ("order", "split", "1") for e in range(20)]
    seeds = {derive_seed(*p) for p in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed(1, 23) != derive_seed(12, 3)


def _draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


@pytest.mark.parametrize("seed", [0, 123, 2**32 + 5, 2**63 - 1])
def test_seed_everything(seed: int) -> None:
    seed_everything(seed)
    first = _draws()
    assert all(a != b for a, b in zip(first, _draws(), strict=True))
    seed_everything(seed)
    assert _draws() == first
    seed_everything(seed - 1 if seed else 1)
    assert all(a != b for a, b in zip(first, _draws(), strict=True))


def test_rng_state_round_trip() -> None:
    state = get_rng_state(CPU)
    first = torch.randn(5)
    assert not torch.equal(first, torch.randn(5))
    set_rng_state(state, CPU)
    assert torch.equal(first, torch.randn(5))
