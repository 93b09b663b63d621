"""Several searches on one device at once (`--gpus-per-trial 0.25`): images a second in all."""

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.workload import Cell, Sizes, make_batches, make_ours

__all__ = ["together"]

_START_SECONDS = 180.0
_ready: Any = None


def _init(barrier: Any) -> None:
    global _ready
    _ready = barrier


def _run(
    cell: Cell, sizes: Sizes, device: str, precision: str, cuda_graph: bool, seconds: float
) -> float:
    """Images a second of one process, while all others run."""
    where = torch.device(device)
    torch.set_num_threads(1)
    try:
        batches = make_batches(cell, sizes, where)
        runner = make_ours(cell, sizes, where, batches, precision=precision, cuda_graph=cuda_graph)
        for _ in range(runner.warm_up):
            runner()
        _synchronize(where)
        _ready.wait(_START_SECONDS)
    except BaseException:
        _ready.abort()  # the others need not wait
        raise
    started = time.perf_counter()
    steps = 0
    while time.perf_counter() - started < seconds:
        runner()
        _synchronize(where)
        steps += 1
    return 2 * cell.batch_size * steps / (time.perf_counter() - started)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def together(
    cell: Cell,
    sizes: Sizes,
    device: str,
    *,
    precision: str,
    cuda_graph: bool = False,
    processes: int,
    seconds: float,
) -> dict[str, Any]:
    """Take the step in so many processes at once, all ready before the first begins.

    Args:
        seconds: that each runs, once all are ready.

    Returns:
        `status`, and `images_per_second` of each process and in all.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    facts: dict[str, Any] = {"processes": processes}
    with ProcessPoolExecutor(processes, context, _init, (barrier,)) as pool:
        futures = [
            pool.submit(_run, cell, sizes, device, precision, cuda_graph, seconds)
            for _ in range(processes)
        ]
        errors = [e for e in (f.exception() for f in futures) if e is not None]
        if errors:
            # A process that waited for one that failed says only that it waited in vain.
            first = next(
                (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
            )
            oom = isinstance(first, torch.OutOfMemoryError)
            return facts | {"status": "oom" if oom else f"failed: {type(first).__name__}: {first}"}
        rates = [f.result() for f in futures]
    return facts | {"status": "ok", "by_process": rates, "images_per_second": sum(rates)}
