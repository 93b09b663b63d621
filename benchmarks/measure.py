"""Time and memory of ways to take a step, and the files that hold what was measured."""

import fcntl
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import Runner
from dasvit.costs import LiveMemory
from dasvit.run.environment import environment
from dasvit.run.files import first_line, write_atomic

__all__ = ["Results", "compare", "free", "matmul_rate", "peak_bytes", "timed"]

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
MIN_ROUNDS = 3
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Results(dict[str, Any]):
    """What is measured: command, commit, versions, device, date, and `rows`. The commit is that of
    the checkout or, where git is not at hand, the environment's COMMIT."""

    def __init__(self, schema: str, path: Path, device: torch.device) -> None:
        super().__init__()
        self.path, machine = path, environment()
        machine["git_commit"] = machine["git_commit"] or os.environ.get("COMMIT")
        facts: dict[str, Any] = {"kind": device.type, "threads": torch.get_num_threads()}
        if device.type == "cuda":
            facts["name"] = torch.cuda.get_device_name(device)
        self["schema"] = schema
        self["command"] = " ".join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        )
        self["date"] = time.strftime("%Y-%m-%d")
        self |= {"environment": machine, "device": facts, "rows": []}

    def save(self) -> None:
        """Write the file, after every part that is measured."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self, indent=1, default=str) + "\n")


def timed(call: Callable[[], object], device: torch.device, clock: str = "wall") -> float:
    """Seconds of a call, the device idle before and after; with the clock "cpu" the time that this
    process had on all processors, for one thread on a CPU that other work shares."""
    now = _CLOCKS[clock]
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    started = now()
    call()
    wait(device)
    return now() - started


def free(device: torch.device) -> None:
    """Give a GPU's memory back that nothing refers to any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: str = "wall") -> float:
    """Operations per second of one square matrix product: 8192 wide on a GPU, 1024 on a CPU; the
    median of seven, after two."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: torch.mm(a, b), device, clock) for _ in range(9)]
    return 2 * n**3 / statistics.median(seconds[2:])


def peak_bytes(call: Callable[[], object], resident: int, device: torch.device) -> int:
    """The most memory that a call's own tensors held at once, with the `resident` bytes that belong
    to it and are there before, such as weights."""
    if device.type == "cuda":
        free(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        timed(call, device)
        return resident + torch.cuda.max_memory_allocated(device) - before
    with LiveMemory() as memory:
        call()
    return resident + memory.peak


def compare(
    makers: Mapping[str, Callable[[], Runner]],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
    clock: str = "wall",
    lock: Path | None = None,
    then: Callable[[str, Runner], dict[str, Any]] = lambda name, runner: {},
) -> dict[str, dict[str, Any]]:
    """Time ways to take a step by turns in one process, after steps that warm up and one whose peak
    is read.

    Args:
        makers: build the ways by name.
        rounds: of all ways.
        seconds: begin no further round after these, once there are three.
        clock: see `timed`.
        lock: a file that several processes name: the first way of each starts beside those of
            others (several compile at once), and all that follows is alone.
        then: measures more of each way.

    Returns:
        By name: `status` ("ok", "oom", or "failed: …"), and where it ran `seconds` (all rounds),
        `median_seconds`, `start_seconds` (making it and the steps that warm up), `peak_bytes`, and
        on a GPU `held_bytes` (all that stays taken from the device between two steps).
    """
    runners: dict[str, Runner] = {}
    times: dict[str, list[float]] = {name: [] for name in makers}
    found: dict[str, dict[str, Any]] = {name: {"status": "ok"} for name in makers}

    def attempt(name: str, work: Callable[[str], dict[str, Any]]) -> None:
        try:
            found[name] |= work(name)
            return
        except OUT_OF_MEMORY:
            found[name] = {"status": "oom"}
        except Exception as error:  # what a compiler or a kernel does not take is a result
            found[name] = {"status": f"failed: {type(error).__name__}: {first_line(error)}"}
        runners.pop(name, None)
        free(device)

    def start(name: str) -> dict[str, Any]:
        free(device)
        before = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0

        def build() -> None:
            runners[name] = makers[name]()
            runners[name]()

        facts: dict[str, Any] = {"start_seconds": timed(build, device)}
        runner = runners[name]
        facts["peak_bytes"] = peak_bytes(runner, runner.resident(), device)
        rest = range(runner.warm_up - 2)
        facts["start_seconds"] += timed(lambda: [runner() for _ in rest], device)
        if device.type == "cuda":
            runner.resident()  # drops gradients
            free(device)
            facts["held_bytes"] = torch.cuda.memory_reserved(device) - before
        return facts

    def once(name: str) -> dict[str, Any]:
        times[name].append(timed(runners[name], device, clock))
        for p in runners[name].model.parameters():
            p.grad = None  # not held against the next one's memory
        return {"seconds": times[name], "median_seconds": statistics.median(times[name])}

    first, *others = makers
    with _turn(lock, fcntl.LOCK_SH):
        attempt(first, start)
    with _turn(lock, fcntl.LOCK_EX):
        for name in others:
            attempt(name, start)
        began = time.perf_counter()
        for number in range(rounds):
            if number >= MIN_ROUNDS and time.perf_counter() - began > seconds:
                break
            for name in [*runners][:: 1 if number % 2 == 0 else -1]:  # there and back
                attempt(name, once)
        for name in [*runners]:
            attempt(name, lambda name: then(name, runners[name]))
        runners.clear()
        free(device)
    return found


@contextmanager
def _turn(lock: Path | None, mode: int) -> Iterator[None]:
    with nullcontext() if lock is None else lock.open("a") as file:
        if file is not None:
            fcntl.flock(file, mode)
        yield
