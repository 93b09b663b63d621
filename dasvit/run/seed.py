"""Seeds and random states: equal seeds give equal runs, also after a restart."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = [
    "capturing",
    "derive_seed",
    "generator",
    "get_rng_state",
    "present_draws",
    "same_draws",
    "seed_everything",
    "set_rng_state",
]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine: `derive_seed(7, "order", 3)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), NumPy and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def get_rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators that a model on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda" and torch.cuda.is_available():  # a plan has no GPU
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """The inverse of `get_rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def present_draws(device: torch.device) -> dict[str, torch.Tensor] | None:
    """The state for `same_draws`; None while a CUDA graph is captured, where nothing is drawn."""
    return None if capturing(device) else get_rng_state(device)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured on the device's current stream."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@contextmanager
def same_draws(state: dict[str, torch.Tensor] | None, device: torch.device) -> Iterator[None]:
    """Run a pass with its stochastic layers drawing from `state`, so that several passes of one
    step see the same dropout masks."""
    if state is not None:
        set_rng_state(state, device)
    yield
