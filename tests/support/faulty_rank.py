"""An operation that goes wrong in one of two processes, once a checkpoint is there.

The environment names two files: FAULT holds what goes wrong, FAULT_AFTER is the checkpoint. A
line for each time is written beside FAULT, as FAULT.fired.
"""

import os
import signal
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from dasvit.run.checkpoint import CheckpointWriter
from dasvit.spaces.cell.operations import register_operation

FAULTY_RANK = 1


def _value() -> None:
    raise ValueError("100 images in a row cannot be read any more")


def _unreadable() -> None:
    Path("/no/such/image.png").read_bytes()


def _kernel() -> None:
    raise RuntimeError("no such kernel")


FAULTS = {
    "value": _value,
    "unreadable": _unreadable,
    "kernel": _kernel,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def _fault() -> str:
    path = Path(os.environ["FAULT"])
    if not path.exists() or not Path(os.environ["FAULT_AFTER"]).exists():
        return ""
    kind, _, once = path.read_text().partition(" ")
    if once:
        path.unlink()
    return kind


class FaultyRank(nn.Module):
    """A linear layer, but in the second process."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if not (self.training and dist.is_initialized() and dist.get_rank() == FAULTY_RANK):
            return y
        if x.is_meta:  # the check before training
            return y
        kind = _fault()
        if kind == "nan":
            return y * float("nan")
        if kind:
            with Path(f"{os.environ['FAULT']}.fired").open("a") as file:
                file.write(f"{kind}\n")
            FAULTS[kind]()
        return y


_save = CheckpointWriter.save


def _save_and_wait(self: CheckpointWriter, state: dict[str, Any]) -> None:
    """The first checkpoint is there when the second epoch begins, whatever the disk."""
    _save(self, state)
    self.wait()


setattr(CheckpointWriter, "save", _save_and_wait)  # noqa: B010
register_operation("brittle", FaultyRank)
