"""Training by several processes: who they are, and sums over them.

One process is the common case, in which nothing here does anything. Several are started by Ray
Train (`tune`) or by torchrun; each has the whole network and its rows of every batch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Processes", "current_processes", "launched_by_torchrun"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among those that train one network together."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """As `Split.batches` takes it."""
        return self.rank, self.count

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """A network whose gradients are the mean over all processes."""
        if self.count == 1:
            return model
        ids = [device.index or 0] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            dist.barrier()


def current_processes() -> Processes:
    """Those of the process group, or this one alone."""
    if dist.is_available() and dist.is_initialized():
        return Processes(rank=dist.get_rank(), count=dist.get_world_size())
    return Processes()


@contextmanager
def launched_by_torchrun(device: torch.device) -> Iterator[torch.device]:
    """A process group for the length of the block if torchrun started this process.

    Args:
        device: what was asked for.

    Yields:
        The device of this process: with GPUs, the one numbered as the process is on its machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
