"""Training by several processes: who they are, and sums over them.

Usually there is one process, and nothing here has an effect. Several are started by Ray Train
(`tune`) or by torchrun; each holds the whole network and takes its rows of every batch.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Processes", "current_processes", "launched_by_torchrun"]

LAST_WORDS_SECONDS = 10.0
"""How long the other processes wait after a failure, so that the first to fail can say why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Which one this process is among those that train one network together."""

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
        """Wait until all processes have come here."""
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

    Where one process fails, all end at once: the others cannot complete a sum without it. The first
    to fail raises its error. The others say nothing: theirs is the same error, or follows from it.

    Args:
        device: what was asked for.

    Yields:
        The device of this process: with GPUs, the one numbered as the process is on its machine.

    Raises:
        SystemExit: status 1, after another process failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    store, rank, count = next(rendezvous("env://"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    try:
        yield device
    except BaseException as error:
        first, group = _first_to_fail(store), dist.group.WORLD
        assert group is not None
        group.abort()  # to destroy it could wait for the others
        if first or not isinstance(error, Exception):
            raise
        time.sleep(LAST_WORDS_SECONDS)  # torchrun ends all processes as soon as one has ended
        raise SystemExit(1) from None
    dist.destroy_process_group()


def _first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("dasvit/failed", 1) == 1
    except RuntimeError:  # the process that held the store is gone, and its message with it
        return True
