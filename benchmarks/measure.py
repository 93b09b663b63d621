"""Time, memory and the device's own rate of matrix products."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from dasvit.costs import LiveMemory

__all__ = [
    "OUT_OF_MEMORY",
    "Clock",
    "LiveMemory",
    "bytes_of",
    "free",
    "matmul_rate",
    "peak_bytes",
    "timed",
]

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


Clock = Literal["wall", "cpu"]
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(call: Callable[[], object], device: torch.device, clock: Clock = "wall") -> float:
    """Seconds of a call, the device idle before and after.

    Args:
        clock: "cpu" counts the time that this process had on all processors: what one thread needs
            on a CPU that other work shares.
    """
    now = _CLOCKS[clock]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = now()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - started


def free(device: torch.device) -> None:
    """Give a GPU's memory back that nothing refers to any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def matmul_rate(
    device: torch.device, dtype: torch.dtype, *, clock: Clock = "wall", repeats: int = 7
) -> float:
    """Operations a second of one square matrix product: 8192 wide on a GPU, 1024 on a CPU; the
    median of `repeats`."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):
        torch.mm(a, b)
    seconds = [timed(lambda: torch.mm(a, b), device, clock) for _ in range(repeats)]
    return 2 * n**3 / statistics.median(seconds)


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of the distinct memories behind the tensors of a collection (others are skipped)."""
    storages = {
        s._cdata: s.nbytes()  # the memory's own address is 0 where there is no data
        for s in (t.untyped_storage() for t in tensors if isinstance(t, Tensor))
    }
    return sum(storages.values())


def peak_bytes(call: Callable[[], object], resident: int, device: torch.device) -> int:
    """The most memory that a call's own tensors held at once.

    Args:
        call: runs once.
        resident: bytes that belong to it and are there before, such as weights.
    """
    if device.type == "cuda":
        free(device)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return resident + torch.cuda.max_memory_allocated(device) - before
    with LiveMemory() as memory:
        call()
    return resident + memory.peak
