"""The search's step against its plain formulation (`reference.py`): time, memory, and the share of
the device's own rate of matrix products.

    python benchmarks/search_step.py --device cuda --out docs/results/search_step_gpu.json
    python benchmarks/render.py docs/results/search_step_gpu.json

Needs torch, torchvision, timm, numpy, jaxtyping and tyro. Stops beginning work at
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

from benchmarks.command import run_command
from benchmarks.facts import STEPS, run_facts
from benchmarks.measurement import Measurement, Plan
from benchmarks.workload import Cell, Sizes
from dasvit.environment import resolve_device
from dasvit.setting import require


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
    precision: str = ""
    """fp32 or bf16, of ours (default: bf16 on a GPU, fp32 on a CPU). The reference runs in fp32
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
    """Time while no other run with the same file does: several may compile at once."""
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
    for name, known in (("stages", {1, 2, 3}), ("orders", {1, 2})):
        values = getattr(args, name)
        require(
            len(values) > 0 and set(values) <= known,
            f"{name} must be some of {sorted(known)}, but got {values}",
        )
    require(len(args.ratios) > 0, "ratios must name at least one λ")
    require(all(b >= 1 for b in args.batches), f"batches must be positive, but got {args.batches}")
    require(args.repeats >= 3, f"repeats must be at least 3, but got {args.repeats}")
    require(args.threads >= 1, f"threads must be positive, but got {args.threads}")
    require(args.processes >= 1, f"processes must be positive, but got {args.processes}")
    require(
        not args.compile or not (args.count_memory or args.processes > 1),
        "compile goes with neither count_memory nor processes",
    )
    require(
        not args.cuda_graph or device.type == "cuda",
        f"cuda_graph needs a GPU, but the device is {device}",
    )
    require(
        args.precision in ("", "fp32", "bf16"),
        f"precision must be fp32 or bf16, but got {args.precision!r}",
    )
    require(
        min(args.dim, args.patches) >= 0,
        f"dim and patches must be >= 0, but got (dim={args.dim}, patches={args.patches})",
    )
    patch = 16 if gpu and not args.quick else 4
    side = args.patches or (4 if args.quick else 14 if gpu else 8)
    dim = args.dim or (48 if args.quick else 768 if gpu else 192)
    plan = Plan(
        sizes=Sizes(dim=dim, image_size=side * patch, patch_size=patch),
        stages=args.stages,
        ratios=args.ratios,
        batches=args.batches or ((4,) if args.quick else (64, 128, 256) if gpu else (16,)),
        orders=args.orders,
        precision=args.precision or ("bf16" if gpu else "fp32"),
        repeats=3 if args.quick else args.repeats,
        group_seconds=1.0 if args.quick else args.group_seconds,
        workers=8 if gpu else 0,
        compile=args.compile,
        cuda_graph=args.cuda_graph,
        alone=args.alone,
        compiled=gpu and not args.compile,
        clock=args.clock,
    )
    for ratio in plan.ratios:  # λ, width and sizes are checked as a search's are
        Cell(stage=1, token_ratio=ratio, batch_size=1, order=1).config(plan.sizes)
    heads = (8, 12, 16)
    require(dim % 48 == 0, f"dim must be a multiple of 48 for {heads} heads, but got {dim}")
    return plan


def run(argv: list[str]) -> None:
    """Measure what a command line asks for.

    Raises:
        ValueError: a setting that cannot be.
    """
    try:
        from dasvit.arguments import parse
    except ModuleNotFoundError as error:  # machines for measuring hold little
        raise ValueError(
            f"the Python package {error.name!r} is missing; pip install {error.name}"
        ) from None
    args: Args = parse(Args, argv)
    device = resolve_device("cpu" if args.count_memory else args.device)
    torch.set_num_threads(args.threads)
    plan = plan_of(args, device)
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
