"""An operation that goes wrong by the seed of its search, as long as a file says so."""

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from dasvit.run.seed import derive_seed
from dasvit.spaces.cell.operations import register_operation


def _no_memory() -> None:
    raise MemoryError("cannot allocate 99 GiB")


def _wrong() -> None:
    raise RuntimeError("no such kernel")


FAULTS = {
    1: lambda: os.kill(os.getpid(), signal.SIGKILL),  # as the kernel does when memory runs out
    2: _no_memory,
    3: _wrong,
}
NAN_SEED = 4


class Faulty(nn.Module):
    """A linear layer, but for the seeds above."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        now = torch.initial_seed()
        seeds = (seed for seed in (*FAULTS, NAN_SEED) if now == derive_seed(seed, "stage", 0))
        self.seed = next(seeds, None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.seed is None or not Path(os.environ["FAULTS_WHILE"]).exists():
            return y
        if self.seed == NAN_SEED:
            return y * float("nan")
        FAULTS[self.seed]()
        return y


register_operation("faulty", Faulty)
