"""Where the time of a step of the search goes, ours and the plain reference's: work by kind.

    python benchmarks/profile_step.py --stages 3 --ratios 0.5 --cuda-graph --out profile.json
    python benchmarks/profile_step.py --device cpu --ways ours reference --batch-size 8

Prints and writes the time by kind of kernel (on a CPU: of operation), those that take longest, and
beside them the time of a step without the profiler and how long the host was busy launching it or
waiting to: where a GPU's kernels take much less than the step, it waits for the host.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.checks import (
    check_out,
    check_positive,
    check_ratios,
    check_some,
    default_precision,
    default_sizes,
)
from benchmarks.command import run_command
from benchmarks.facts import run_facts
from benchmarks.kernel_kinds import CPU_KINDS, GPU_KINDS, by_kind
from benchmarks.measure import timed
from benchmarks.workload import Cell, Runner, Sizes, make_batches, make_ours, make_reference
from dasvit.commands.arguments import parse
from dasvit.run.environment import check_cuda_graph, resolve_device
from dasvit.run.files import write_atomic

SCHEMA = "dasvit/profile_step/2"
LONGEST = 30

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Profile a step of the search.

    Example: python benchmarks/profile_step.py --stages 1 --ratios 1 --cuda-graph --compile
    """

    out: Path = Path("profile_step.json")
    """The results."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    ways: tuple[Literal["ours", "reference"], ...] = ("ours",)
    """ours, reference or both."""
    stages: tuple[int, ...] = (3,)
    """Some of 1, 2 and 3."""
    ratios: tuple[float, ...] = (0.5,)
    """Token ratios λ."""
    orders: tuple[int, ...] = (1,)
    """Orders of the gradient of alpha: 1, 2 or both."""
    batch_size: int = 64
    """Images of each batch of a step."""
    dim: int = 0
    """Width of the network; 0 takes the paper's 768 on a GPU and 192 on a CPU."""
    patches: int = 0
    """Patches a side; 0 takes the paper's 14 on a GPU and 8 on a CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of both; auto is bf16 on a GPU and fp32 on a CPU."""
    compile: bool = False
    """Ours through torch.compile."""
    cuda_graph: bool = False
    """Ours replayed as a CUDA graph."""
    threads: int = 1
    """Threads of PyTorch on the CPU; with one, times there are processor times."""
    steps: int = 5
    """Steps that are timed, and that are profiled."""
    commit: str = ""
    """The commit measured, where git is not at hand."""


def _kernels(step: Callable[[], object], steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Kernels of a step, or operations of a CPU, longest first."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(steps):
            step()
        if gpu:
            torch.cuda.synchronize(device)
    where = DeviceType.CUDA if gpu else DeviceType.CPU
    kernels = [
        {
            "name": event.key,
            "ms": (event.self_device_time_total if gpu else event.self_cpu_time_total)
            / 1e3
            / steps,
            "launches": event.count / steps,
        }
        for event in profiled.key_averages()
        # A GPU lists the span of a named range too, whose kernels are there themselves.
        if event.device_type == where and not (gpu and event.is_user_annotation)
    ]
    return sorted((k for k in kernels if k["ms"] > 0), key=lambda kernel: -kernel["ms"])


def measure(cell: Cell, ways: Mapping[str, Runner], steps: int, device: torch.device) -> list[Row]:
    """Profiles of the ways to take a step, timed by turns before."""
    for step in ways.values():
        for _ in range(step.warm_up + 1):
            step()
    clock = "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(steps):
        for name, step in ways.items():
            times[name].append(timed(step, device, clock))
    rows = []
    for name, step in ways.items():
        row: Row = asdict(cell) | {"way": name, "step_ms": 1e3 * statistics.median(times[name])}
        if device.type == "cuda":
            row["host_ms"] = 1e3 * _launching(step, steps, device)
        kernels = _kernels(step, steps, device)
        rows.append(
            row
            | {
                "profiled_ms": sum(kernel["ms"] for kernel in kernels),
                "kinds": by_kind(kernels, GPU_KINDS if device.type == "cuda" else CPU_KINDS),
                "longest": kernels[:LONGEST],
            }
        )
    return rows


def _launching(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds a step that the host is busy when it does not wait for the device in between."""
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    launched = time.perf_counter() - started
    torch.cuda.synchronize(device)
    return launched / steps


def _makers(
    args: Args, cell: Cell, sizes: Sizes, device: torch.device
) -> dict[str, Callable[[], Runner]]:
    batches = make_batches(cell, sizes, device)
    precision = default_precision(args.precision, gpu=device.type == "cuda")
    return {
        "ours": lambda: make_ours(
            cell,
            sizes,
            device,
            batches,
            precision=precision,
            compile=args.compile,
            cuda_graph=args.cuda_graph,
        ),
        "reference": lambda: make_reference(cell, sizes, device, batches, precision),
    }


def run(argv: list[str]) -> None:
    """Profile what a command line asks for.

    Raises:
        ValueError: a setting that cannot be.
    """
    args: Args = parse(Args, argv)
    device = resolve_device(args.device)
    check_some(args, stages={1, 2, 3}, orders={1, 2}, ways={"ours", "reference"})
    check_positive(args, "batch_size", "threads", "steps")
    check_out(args.out)
    if args.cuda_graph:
        check_cuda_graph(device)
    sizes = default_sizes(gpu=device.type == "cuda", dim=args.dim, patches=args.patches)
    check_ratios(args.ratios, sizes)
    torch.set_num_threads(args.threads)
    cells = [
        Cell(stage=stage, token_ratio=ratio, batch_size=args.batch_size, order=order)
        for order, stage, ratio in itertools.product(args.orders, args.stages, args.ratios)
    ]
    facts = run_facts(SCHEMA, "profile_step.py", argv, device, commit=args.commit)
    rows: list[Row] = []
    facts |= {"date": time.strftime("%Y-%m-%d"), "rows": rows}
    for cell in cells:
        makers = _makers(args, cell, sizes, device)
        found = measure(cell, {way: makers[way]() for way in args.ways}, args.steps, device)
        for row in found:
            _show(row)
        rows += found
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, json.dumps(facts, indent=1) + "\n")
    print(f"results: {args.out}")


def _show(row: Row) -> None:
    host = f", of the host {row['host_ms']:.1f} ms" if "host_ms" in row else ""
    print(
        f"stage {row['stage']}, λ = {row['token_ratio']:g}, batch {row['batch_size']}, order "
        f"{row['order']}, {row['way']}: a step {row['step_ms']:.1f} ms{host}, profiled "
        f"{row['profiled_ms']:.1f} ms",
        flush=True,
    )
    for kind, part in row["kinds"].items():
        print(f"  {kind:26} {part['ms']:8.2f} ms {part['launches']:8.0f} launches")


def main() -> None:
    run_command(run)


if __name__ == "__main__":
    main()
