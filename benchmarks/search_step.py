"""The search's step against its plain formulation (`reference.py`): time, memory, and the share of
the device's own rate of matrix products.

    python benchmarks/search_step.py --device cuda --out docs/results/search_step_gpu.json
    python benchmarks/render.py docs/results/search_step_gpu.json

Needs torch, torchvision, timm, numpy and jaxtyping. Stops beginning work at
`--budget-seconds`; the most important comes first, and what was left out is in the file. The step
is timed on batches that lie on the device, for both alike; drawing batches is timed apart.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.checks import (
    check_out,
    check_positive,
    check_ratios,
    check_seconds,
    check_some,
    default_precision,
    default_sizes,
)
from benchmarks.command import run_command
from benchmarks.facts import STEPS, run_facts
from benchmarks.measurement import Measurement, Plan
from dasvit.commands.arguments import parse
from dasvit.run.environment import check_cuda_graph, resolve_device
from dasvit.run.settings import require


@dataclass(frozen=True, kw_only=True)
class Args:
    """Time a step of the search, ours and the plain reference by turns.

    Example: python benchmarks/search_step.py --device cpu --quick
    """

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path = Path("search_step.json")
    """The results."""
    dim: int = 0
    """Width of the network; 0 takes the paper's 768 on a GPU and 192 on a CPU."""
    patches: int = 0
    """Patches a side; 0 takes the paper's 14 on a GPU and 8 on a CPU."""
    batches: tuple[int, ...] = ()
    """Batch sizes (default: 64 128 256 on a GPU, 16 on a CPU)."""
    ratios: tuple[float, ...] = (1.0, 0.5)
    """Token ratios λ."""
    stages: tuple[int, ...] = (1, 2, 3)
    """Stages: 2, 4 and 6 layers with 8, 5 and 3 candidates an edge."""
    orders: tuple[int, ...] = (1, 2)
    """Orders of the gradient of alpha."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of ours; auto is bf16 on a GPU and fp32 on a CPU. The reference runs in fp32
    and in this."""
    repeats: int = 10
    """Rounds of a comparison, at least 3."""
    group_seconds: float = 8.0
    """No further round of a comparison after these seconds."""
    threads: int = 1
    """Threads of PyTorch on the CPU."""
    budget_seconds: float = 540.0
    """Begin nothing that would end later than this; waiting for `--alone` counts."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu counts the processor time of this process: for one thread on a shared CPU."""
    count_memory: bool = False
    """Only count the peaks of memory, on tensors without data: any size, on any machine."""
    compile: bool = False
    """Ours through torch.compile, and no ablation: a minute and more for every row."""
    cuda_graph: bool = False
    """Ours replayed as CUDA graphs, on a GPU."""
    alone: Path | None = None
    """Time while no other run with the same file starts or times: several compile at once, then
    each is timed alone."""
    processes: int = 1
    """Above 1: also so many copies of the step at once, and only that is measured."""
    commit: str = ""
    """The commit measured, where git is not at hand."""
    quick: bool = False
    """A trial of the program in seconds: width 48, 4 patches a side, batches of 4."""


def plan_of(args: Args, device: torch.device) -> Plan:
    """The settings of a command line.

    Raises:
        ValueError: one that cannot be.
    """
    gpu = device.type == "cuda" or args.count_memory
    require(args.clock == "wall" or device.type == "cpu", "clock must be wall where a GPU computes")
    check_some(args, stages={1, 2, 3}, orders={1, 2})
    check_positive(args, "batches", "threads", "processes")
    check_seconds(args, "budget_seconds", "group_seconds")
    check_out(args.out)
    require(args.repeats >= 3, f"repeats must be at least 3, but got {args.repeats}")
    require(
        not args.compile or not (args.count_memory or args.processes > 1),
        "compile goes with neither count_memory nor processes",
    )
    if args.cuda_graph:
        check_cuda_graph(device)
    quick = args.quick
    sizes = default_sizes(
        gpu=gpu and not quick,
        dim=args.dim or 48 * quick,
        patches=args.patches or 4 * quick,
    )
    check_ratios(args.ratios, sizes)
    heads = (8, 12, 16)
    require(
        sizes.dim % 48 == 0, f"dim must be a multiple of 48 for {heads} heads, but got {sizes.dim}"
    )
    return Plan(
        sizes=sizes,
        stages=args.stages,
        ratios=args.ratios,
        batches=args.batches or ((4,) if quick else (64, 128, 256) if gpu else (16,)),
        orders=args.orders,
        precision=default_precision(args.precision, gpu=gpu),
        repeats=3 if quick else args.repeats,
        group_seconds=1.0 if quick else args.group_seconds,
        workers=8 if gpu else 0,
        compile=args.compile,
        cuda_graph=args.cuda_graph,
        alone=args.alone,
        compiled=gpu and not args.compile,
        clock=args.clock,
    )


def run(argv: list[str]) -> None:
    """Measure what a command line asks for.

    Raises:
        ValueError: a setting that cannot be.
    """
    args: Args = parse(Args, argv)
    device = resolve_device("cpu" if args.count_memory else args.device)
    plan = plan_of(args, device)
    torch.set_num_threads(args.threads)
    facts = run_facts(STEPS, "search_step.py", argv, device, commit=args.commit)
    measurement = Measurement(plan, device, args.out, facts, seconds=args.budget_seconds)
    if args.count_memory:
        measurement.count_memory()
    elif args.processes > 1:
        measurement.processes(args.processes)
    else:
        measurement.table(first=True)
        if device.type == "cuda" or args.quick:
            measurement.projection()
        if not args.compile:
            measurement.ablation()
        measurement.table(first=False)
        measurement.compiled()
    measurement.save()
    print(f"results: {args.out}")


def main() -> None:
    run_command(run)


if __name__ == "__main__":
    main()
