"""Several ways to take a step, one process, turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from benchmarks.measure import OUT_OF_MEMORY, Clock, free, peak_bytes, timed
from benchmarks.workload import Runner
from dasvit.run.files import first_line
from dasvit.search.memory import BLOCK, peak_of

__all__ = ["MIN_ROUNDS", "compare", "counted_peak"]

MIN_ROUNDS = 3


def compare(
    makers: Mapping[str, Callable[[], Runner]],
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    memory: bool = True,
    clock: Clock = "wall",
    beside: Callable[[], AbstractContextManager[object]] = nullcontext,
    alone: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, dict[str, Any]]:
    """Time each in turn, there and back, after steps that warm up and a peak that is read.

    Args:
        makers: build the ways by name.
        repeats: rounds.
        seconds: begin no further round after these, once there are `MIN_ROUNDS`.
        memory: read peaks (another, untimed step).
        clock: see `timed`.
        beside: makes a context for the start of the first way.
        alone: makes one for all that follows.

    Returns:
        By name: `status` ("ok", "oom", or "failed: …"), and where it ran `seconds` (all rounds),
        `median_seconds`, `start_seconds` (making it and the steps that warm up), `peak_bytes`, and
        on a GPU `held_bytes` (all that stays taken from the device between two steps).
    """
    runners: dict[str, Runner] = {}
    found: dict[str, dict[str, Any]] = {}

    def start(name: str) -> None:
        runner, found[name] = _start(makers[name], device, memory=memory)
        if runner is not None:
            runners[name] = runner
        free(device)

    first, *others = makers
    with beside():
        start(first)
    with alone():
        for name in others:
            start(name)
        times = _times(runners, found, device, repeats=repeats, seconds=seconds, clock=clock)
    for name, values in times.items():
        found[name] |= {"seconds": values, "median_seconds": statistics.median(values)}
    runners.clear()
    free(device)
    return found


def _times(
    runners: dict[str, Runner],
    found: dict[str, dict[str, Any]],
    device: torch.device,
    *,
    repeats: int,
    seconds: float,
    clock: Clock,
) -> dict[str, list[float]]:
    """Seconds of each runner's steps; one that runs out of memory is dropped; `found` says so."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    started = time.perf_counter()
    for number in range(repeats):
        if number >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        order = list(runners) if number % 2 == 0 else list(reversed(runners))
        for name in order:
            try:
                times[name].append(timed(runners[name], device, clock))
            except OUT_OF_MEMORY:
                found[name] = {"status": "oom"}
                del runners[name], times[name]
                free(device)
                continue
            for p in runners[name].model.parameters():
                p.grad = None  # not held against the next one's memory
    return times


def _start(
    make: Callable[[], Runner], device: torch.device, *, memory: bool
) -> tuple[Runner | None, dict[str, Any]]:
    """The runner, warm, and its peak, or None and why."""
    made: list[Runner] = []
    on_gpu = device.type == "cuda"
    free(device)
    before = torch.cuda.memory_reserved(device) if on_gpu else 0

    def rest() -> None:
        for _ in range(made[0].warm_up - 2):
            made[0]()

    try:
        first = timed(lambda: (made.append(make()), made[0]()), device)
        facts: dict[str, Any] = {"status": "ok"}
        if memory:
            facts["peak_bytes"] = peak_bytes(made[0], made[0].resident(), device)
        else:
            made[0]()
        facts["start_seconds"] = first + timed(rest, device)
        if on_gpu:
            made[0].resident()  # drops gradients
            free(device)
            facts["held_bytes"] = torch.cuda.memory_reserved(device) - before
    except OUT_OF_MEMORY:
        return None, {"status": "oom"}
    except Exception as error:  # what a compiler or a kernel does not take is a result
        return None, {"status": f"failed: {type(error).__name__}: {first_line(error)}"}
    return made[0], facts


def counted_peak(make: Callable[[], Runner], *, block: int = BLOCK) -> int:
    """`dasvit.search.memory.peak_of` a runner's step: what `compare` measures, with no gradients held from
    step to step."""

    def steps() -> Callable[[], object]:
        runner = make()
        runner()  # the optimisers' states
        runner.resident()
        return lambda: (runner(), runner.resident())

    return peak_of(steps, block=block)[1]
