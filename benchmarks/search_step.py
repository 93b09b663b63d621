"""A step of the search against its plain formulation (`reference.py`): time, memory, and the share
of the device's own rate of matrix products.

    python benchmarks/search_step.py --out docs/results/search_step_cpu.json
    python benchmarks/tables.py docs/results/search_step_cpu.json

Ours and the reference run by turns, on batches that lie on the device. What runs out of memory or
fails is a row that says so. Needs what a search needs, and no Ray, Optuna or network.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.kernels import profile_step
from benchmarks.measure import Results, compare, counted_peak, matmul_rate
from benchmarks.processes import together
from benchmarks.workload import (
    Cell,
    Runner,
    Sizes,
    candidates,
    make_batches,
    make_ours,
    make_reference,
    search_config,
    useful_flops,
)
from dasvit.run.environment import check_cuda_graph, resolve_device
from dasvit.search.memory import measure_stage, plan_stage

SCHEMA = "dasvit/search_step/2"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


def common_arguments(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with what the benchmarks of a step have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path(out), help="the results, JSON")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--tiny", action="store_true", help="width 48, 4 × 4 patches, batches of 4: a trial run")
    add("--sizes", choices=("auto", "paper", "small"), default="auto",
        help="width 768 and 14 × 14 patches, or 192 and 8 × 8; auto: paper on a GPU")  # fmt: skip
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of ours; auto: bf16 on a GPU. The reference runs in fp32 and in this")  # fmt: skip
    add("--ratios", type=float, nargs="+", default=[1.0, 0.5], help="token ratios λ")
    add("--orders", type=int, nargs="+", choices=(1, 2), default=[1], help="of alpha's gradient")
    add("--compile", action="store_true", help="ours through torch.compile")
    add("--cuda-graph", action="store_true", help="ours replayed as a CUDA graph, on a GPU")
    add("--rounds", type=int, default=10, help="of a comparison, at least 3")
    add("--seconds", type=float, default=8.0, help="no further round of a comparison after these")
    add("--threads", type=int, default=1, help="of PyTorch on the CPU")
    add("--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: the time that this process had, for one thread on a shared CPU")  # fmt: skip
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = common_arguments(__doc__, "search_step.json")
    add = parser.add_argument
    add("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3],
        help="2, 4 and 6 layers with 8, 5 and 3 candidates per edge")  # fmt: skip
    add("--batches", type=int, nargs="+", help="batch sizes (default: 64 on a GPU, 16 on a CPU)")
    add("--ways", nargs="+", choices=("ours", "reference"), default=["ours", "reference"])
    add("--profile", action="store_true", help="also the time of a step by kind of kernel")
    add("--lock", type=Path, metavar="FILE",
        help="several runs with one FILE compile at once and are timed one by one")  # fmt: skip
    add("--processes", type=int, default=1,
        help="above 1: images per second of one process, and of so many at once")  # fmt: skip
    add("--count-memory", action="store_true",
        help="only count peaks of memory, without computing: any size, on any machine")  # fmt: skip
    add("--check-plan", action="store_true",
        help="only compare the plan of a stage's memory with what its step takes")  # fmt: skip
    return parser


def prepare(args: argparse.Namespace, schema: str) -> tuple[torch.device, Sizes, Results]:
    """The device, the sizes, and results without rows; fills what `args` left to the device.

    Raises:
        ValueError: settings that cannot be.
    """
    counts = getattr(args, "count_memory", False)
    device = resolve_device("cpu" if counts else args.device)
    gpu = device.type == "cuda" or counts
    if args.cuda_graph:
        check_cuda_graph(device)
    if args.rounds < 3 or args.threads < 1 or (gpu and args.clock == "cpu" and not counts):
        raise ValueError("--rounds must be 3 or more, --threads positive, --clock wall on a GPU")
    torch.set_num_threads(args.threads)
    auto = "tiny" if args.tiny else "paper" if gpu else "small"
    sizes = Sizes.of(auto if args.tiny or args.sizes == "auto" else args.sizes)
    args.batches = args.batches or [4 if args.tiny else 64 if gpu else 16]
    args.precision = {"auto": "bf16" if gpu else "fp32"}.get(args.precision, args.precision)
    if args.tiny:
        args.rounds, args.seconds = 3, 1.0
    results = Results(schema, args.out, device)
    results |= {"plan": vars(args) | {"sizes": asdict(sizes)}, "rows": []}
    for ratio in args.ratios:
        search_config(Cell(stage=1, token_ratio=ratio), sizes)  # raises what cannot be
    return device, sizes, results


def _cells(args: argparse.Namespace) -> list[Cell]:
    return [
        Cell(stage=stage, token_ratio=ratio, batch_size=batch_size, order=order)
        for order, batch_size, stage, ratio in itertools.product(
            args.orders, args.batches, args.stages, args.ratios
        )
    ]


def _variants(args: argparse.Namespace) -> list[tuple[str, str]]:
    plain = [("reference", p) for p in dict.fromkeys(["fp32", args.precision])]
    return [v for v in [("ours", args.precision), *plain] if v[0] in args.ways]


def measure(args: argparse.Namespace, device: torch.device, sizes: Sizes, out: Results) -> None:
    """Ours and the reference in every cell, one after the other."""
    rates: dict[str, float] = {}

    def extras(name: str, runner: Runner) -> dict[str, Any]:
        precision = name.split()[1]
        if precision not in rates:
            rates[precision] = matmul_rate(device, DTYPES[precision], clock=args.clock)
        return profile_step(runner, device) if args.profile else {}

    for cell in _cells(args):
        batches = make_batches(cell, sizes, device)
        ours = partial(make_ours, compile=args.compile, cuda_graph=args.cuda_graph)
        makers = {
            f"{variant} {precision}": partial(
                ours, cell, sizes, device, batches, precision=precision
            )
            if variant == "ours"
            else partial(make_reference, cell, sizes, device, batches, precision)
            for variant, precision in _variants(args)
        }
        useful = useful_flops(cell, sizes)
        found = compare(
            makers,
            device,
            rounds=args.rounds,
            seconds=args.seconds,
            clock=args.clock,
            lock=args.lock,
            then=extras,
        )
        for name, row in found.items():
            variant, precision = name.split()
            if row["status"] == "ok":
                median = row["median_seconds"]
                row |= {
                    "images_per_second": 2 * cell.batch_size / median,
                    "useful_flops": useful,
                    "matmul_rate": rates[precision],
                    "matmul_fraction": useful / median / rates[precision],
                }
            out["rows"].append(asdict(cell) | {"variant": variant, "precision": precision} | row)
            _say(cell, name, out["rows"][-1])
        out.save()


def count_memory(args: argparse.Namespace, sizes: Sizes, out: Results) -> None:
    """Peaks alone, of any size, without computing anything."""

    def make(cell: Cell, variant: str, precision: str) -> Runner:
        batches = make_batches(cell, sizes, CPU)
        if variant == "ours":
            return make_ours(cell, sizes, CPU, batches, precision=precision)
        return make_reference(cell, sizes, CPU, batches, precision, same_weights=False)

    for cell, (variant, precision) in itertools.product(_cells(args), _variants(args)):
        candidates(cell.stage)  # made of numbers: before they have none
        row = asdict(cell) | {"variant": variant, "precision": precision, "status": "ok"}
        row["peak_bytes"] = counted_peak(partial(make, cell, variant, precision))
        out["rows"].append(row)
        _say(cell, f"{variant} {precision}", row)
    out.save()


def check_plan(args: argparse.Namespace, device: torch.device, sizes: Sizes, out: Results) -> None:
    """The plan of a stage's memory beside what its step takes on the device."""
    for cell in _cells(args):
        config = search_config(cell, sizes, precision=args.precision)
        planned = plan_stage(config, cell.stage - 1).peak
        measured = measure_stage(config, cell.stage - 1, device)
        status = "oom" if measured is None else "ok"
        row = asdict(cell) | {"variant": "plan", "precision": args.precision, "status": status}
        out["rows"].append(row | {"planned_bytes": planned, "peak_bytes": measured})
        error = f"{planned / measured - 1:+.1%}" if measured else "out of memory"
        print(f"{cell}: planned {planned / 2**20:.0f} MiB, {error}", flush=True)
        out.save()


def several(args: argparse.Namespace, device: torch.device, sizes: Sizes, out: Results) -> None:
    """Images per second of one process, and of several at once."""
    for cell, count in itertools.product(_cells(args), (1, args.processes)):
        found = together(
            cell,
            sizes,
            str(device),
            processes=count,
            seconds=args.seconds,
            precision=args.precision,
            cuda_graph=args.cuda_graph,
        )
        row = asdict(cell) | {"variant": f"{count} at once", "precision": args.precision} | found
        out["rows"].append(row)
        print(f"{cell}: {count} processes, {found}", flush=True)
        out.save()


def _say(cell: Cell, name: str, row: dict[str, Any]) -> None:
    time_taken = f"{1e3 * row['median_seconds']:.1f} ms, " if "median_seconds" in row else ""
    peak = f"{row['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in row else row["status"]
    print(f"{cell}: {name} {time_taken}{peak}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        device, sizes, out = prepare(args, SCHEMA)
    except ValueError as error:
        parser.error(" ".join(str(error).split()))
    if args.count_memory:
        count_memory(args, sizes, out)
    elif args.check_plan:
        check_plan(args, device, sizes, out)
    elif args.processes > 1:
        several(args, device, sizes, out)
    else:
        measure(args, device, sizes, out)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
