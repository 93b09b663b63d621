"""Several ways to take a step, one process, turn by turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.measure import OUT_OF_MEMORY, Clock, free, peak_bytes, timed
from benchmarks.workload import Runner
from dasvit.files import first_line
from dasvit.memory import BLOCK, peak_of

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
) -> dict[str, dict[str, Any]]:
    """Time each in turn, there and back, after two steps that warm up and a peak that is read.

    Args:
        makers: build the ways by name.
        repeats: rounds.
        seconds: begin no further round after these, once there are `MIN_ROUNDS`.
        memory: read peaks (another, untimed step).
        clock: see `timed`.

    Returns:
        By name: `status` ("ok", "oom", or "failed: …"), and where it ran `seconds` (all rounds),
        `median_seconds`, `start_seconds` (making it and its first step), and `peak_bytes`.
    """
    runners: dict[str, Runner] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        runner, found[name] = _start(make, device, memory=memory)
        if runner is not None:
            runners[name] = runner
        free(device)
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
    for name, values in times.items():
        found[name] |= {"seconds": values, "median_seconds": statistics.median(values)}
    runners.clear()
    free(device)
    return found


def _start(
    make: Callable[[], Runner], device: torch.device, *, memory: bool
) -> tuple[Runner | None, dict[str, Any]]:
    """The runner after two steps and its peak, or None and why."""
    made: list[Runner] = []
    try:
        first = timed(lambda: (made.append(make()), made[0]()), device)
        facts: dict[str, Any] = {"status": "ok", "start_seconds": first}
        if memory:
            facts["peak_bytes"] = peak_bytes(made[0], made[0].resident(), device)
        else:
            made[0]()
    except OUT_OF_MEMORY:
        return None, {"status": "oom"}
    except Exception as error:  # what a compiler or a kernel does not take is a result
        return None, {"status": f"failed: {type(error).__name__}: {first_line(error)}"}
    return made[0], facts


def counted_peak(make: Callable[[], Runner], *, block: int = BLOCK) -> int:
    """`dasvit.memory.peak_of` a runner's step: what `compare` measures, with no gradients held from
    step to step."""

    def steps() -> Callable[[], object]:
        runner = make()
        return lambda: (runner(), runner.resident())

    return peak_of(steps, block=block)[1]
