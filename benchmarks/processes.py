"""Several searches on one device at once (`--gpus-per-trial 0.25`): images per second in all."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.workload import Cell, Sizes, make_batches, make_ours

__all__ = ["together"]

_ready: Any = None


def _init(barrier: Any) -> None:
    global _ready
    _ready = barrier


def _run(cell: Cell, sizes: Sizes, device: str, seconds: float, settings: dict[str, Any]) -> float:
    """Images per second of one process, while all others run."""
    where = torch.device(device)
    torch.set_num_threads(1)
    try:
        runner = make_ours(cell, sizes, where, make_batches(cell, sizes, where), **settings)
        for _ in range(runner.warm_up):
            runner()
        _ready.wait(180)
    except BaseException:
        _ready.abort()  # the others need not wait
        raise
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        runner()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        steps += 1
    return 2 * cell.batch_size * steps / (time.perf_counter() - started)


def together(
    cell: Cell, sizes: Sizes, device: str, *, processes: int, seconds: float, **settings: Any
) -> dict[str, Any]:
    """Take the step in so many processes at once for some seconds, all ready before the first
    begins; `settings` are those of `SearchConfig`.

    Returns:
        `status`, and `images_per_second` of each process and in all.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _init, (barrier,)) as pool:
        jobs = [pool.submit(_run, cell, sizes, device, seconds, settings) for _ in range(processes)]
        errors = [error for error in (job.exception() for job in jobs) if error is not None]
        if errors:
            # A process that waited for one that failed says only that it waited in vain.
            first = min(errors, key=lambda e: type(e).__name__ == "BrokenBarrierError")
            return {"status": f"failed: {type(first).__name__}: {first}"}
        rates = [job.result() for job in jobs]
    return {"status": "ok", "by_process": rates, "images_per_second": sum(rates)}
