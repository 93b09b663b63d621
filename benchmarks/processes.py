"""Several searches on one device at once (`--gpus-per-trial 0.25`): images per second in all."""

import multiprocessing
import time
from typing import Any

import torch

from benchmarks.measure import timed
from benchmarks.workload import Cell, Sizes, make_batches, make_ours

__all__ = ["together"]


def _run(
    ready: Any, found: Any, cell: Cell, sizes: Sizes, device: torch.device, settings: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    seconds = settings.pop("seconds")
    runner = make_ours(cell, sizes, device, make_batches(cell, sizes, device), **settings)
    for _ in range(runner.warm_up):
        runner()
    ready.wait(180)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        timed(runner, device)
        steps += 1
    found.put(2 * cell.batch_size * steps / (time.perf_counter() - started))


def together(
    cell: Cell, sizes: Sizes, device: torch.device, *, processes: int, **settings: Any
) -> dict[str, Any]:
    """Images per second of processes that take the step at once, all ready before the first begins.

    Args:
        settings: those of `SearchConfig`, and the `seconds` that each process runs.
    """
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(processes), context.Queue()
    arguments = (ready, found, cell, sizes, device, settings)
    started = [context.Process(target=_run, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            ready.abort()  # the others need not wait
    failed = sum(process.exitcode != 0 for process in started)
    if failed:
        return {"status": f"failed: {failed} of {processes} processes"}
    rates = [found.get() for _ in started]
    return {"status": "ok", "by_process": rates, "images_per_second": sum(rates)}
