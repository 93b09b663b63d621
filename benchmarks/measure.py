"""Time and memory of ways to take a step, and what stands at the head of a file of results."""

import fcntl
import gc
import hashlib
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
from dasvit.search.memory import BLOCK, peak_of

__all__ = ["Results", "compare", "counted_peak", "free", "matmul_rate", "peak_bytes", "timed"]

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
MIN_ROUNDS = 3
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Results(dict[str, Any]):
    """What is measured, on disk after every `save`: command, commit, versions, device, date.

    The commit is that of the checkout, or, where git is not at hand, the environment's `COMMIT`;
    `code_sha256` shows whether a checkout is the code that was measured.
    """

    def __init__(self, schema: str, path: Path, device: torch.device) -> None:
        if path.is_dir():
            raise ValueError(f"--out must be a file, but {path} is a folder")
        super().__init__()
        self.path = path
        machine = environment() | {"code_sha256": code_sha256()}
        machine["git_commit"] = machine["git_commit"] or os.environ.get("COMMIT")
        facts: dict[str, Any] = {"kind": device.type, "threads": torch.get_num_threads()}
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            facts |= {"name": properties.name, "memory_bytes": properties.total_memory}
        command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        self.update(
            schema=schema,
            command=" ".join(command),
            date=time.strftime("%Y-%m-%d"),
            environment=machine,
            device=facts,
        )

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self, indent=1, default=str) + "\n")


def code_sha256(root: Path = Path(__file__).parents[1]) -> str:
    """Of the Python files that are measured; with their commit checked out,
    `python -c "from benchmarks.measure import *; print(code_sha256())"` prints the same."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("benchmarks", "dasvit") for p in (root / part).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def timed(call: Callable[[], object], device: torch.device, clock: str = "wall") -> float:
    """Seconds of a call, the device idle before and after; with the clock "cpu" the time that this
    process had on all processors, for one thread on a CPU that other work shares."""
    now, gpu = _CLOCKS[clock], device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
    started = now()
    call()
    if gpu:
        torch.cuda.synchronize(device)
    return now() - started


def free(device: torch.device) -> None:
    """Give a GPU's memory back that nothing refers to any more."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def matmul_rate(
    device: torch.device, dtype: torch.dtype, *, clock: str = "wall", repeats: int = 7
) -> float:
    """Operations per second of one square matrix product: 8192 wide on a GPU, 1024 on a CPU; the
    median of `repeats`."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):
        torch.mm(a, b)
    seconds = [timed(lambda: torch.mm(a, b), device, clock) for _ in range(repeats)]
    return 2 * n**3 / statistics.median(seconds)


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


def counted_peak(make: Callable[[], Runner], *, block: int = BLOCK) -> int:
    """The peak of a step on tensors without data: of any size, on any machine."""

    def steps() -> Callable[[], object]:
        runner = make()
        runner()  # the optimisers' states
        runner.resident()
        return lambda: (runner(), runner.resident())

    return peak_of(steps, block=block)[1]


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
    found: dict[str, dict[str, Any]] = {name: {"status": "ok"} for name in makers}

    def attempt(name: str, work: Callable[[], dict[str, Any]]) -> None:
        try:
            found[name] |= work()
            return
        except OUT_OF_MEMORY:
            found[name] = {"status": "oom"}
        except Exception as error:  # what a compiler or a kernel does not take is a result
            found[name] = {"status": f"failed: {type(error).__name__}: {first_line(error)}"}
        runners.pop(name, None)
        free(device)

    def start(name: str) -> None:
        attempt(name, lambda: _start(runners, name, makers[name], device))

    first, *others = makers
    with _turn(lock, fcntl.LOCK_SH):
        start(first)
    with _turn(lock, fcntl.LOCK_EX):
        for name in others:
            start(name)
        times: dict[str, list[float]] = {name: [] for name in runners}
        started = time.perf_counter()
        for number in range(rounds):
            if number >= MIN_ROUNDS and time.perf_counter() - started > seconds:
                break
            for name in [*runners][:: 1 if number % 2 == 0 else -1]:  # there and back
                attempt(name, lambda n=name: _once(times[n], runners[n], device, clock))
        for name in [*runners]:
            median = statistics.median(times[name])
            found[name] |= {"seconds": times[name], "median_seconds": median}
            attempt(name, lambda n=name: then(n, runners[n]))
        runners.clear()
        free(device)
    return found


@contextmanager
def _turn(lock: Path | None, mode: int) -> Iterator[None]:
    with nullcontext() if lock is None else lock.open("a") as file:
        if file is not None:
            fcntl.flock(file, mode)
        yield


def _start(
    runners: dict[str, Runner], name: str, make: Callable[[], Runner], device: torch.device
) -> dict[str, Any]:
    free(device)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_reserved(device) if on_gpu else 0

    def build() -> None:
        runners[name] = make()
        runners[name]()

    first = timed(build, device)
    runner = runners[name]
    facts: dict[str, Any] = {"peak_bytes": peak_bytes(runner, runner.resident(), device)}
    rest = timed(lambda: [runner() for _ in range(runner.warm_up - 2)], device)
    facts["start_seconds"] = first + rest
    if on_gpu:
        runner.resident()  # drops gradients
        free(device)
        facts["held_bytes"] = torch.cuda.memory_reserved(device) - before
    return facts


def _once(times: list[float], runner: Runner, device: torch.device, clock: str) -> dict[str, Any]:
    times.append(timed(runner, device, clock))
    for p in runner.model.parameters():
        p.grad = None  # not held against the next one's memory
    return {}
