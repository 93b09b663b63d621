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
from benchmarks.measure import MIN_ROUNDS, Results, compare, matmul_rate
from benchmarks.processes import together
from benchmarks.workload import (
    Cell,
    Runner,
    Sizes,
    make_batches,
    make_ours,
    make_reference,
    search_config,
    useful_flops,
)
from dasvit.methods import method_names
from dasvit.run.environment import check_cuda_graph, resolve_device
from dasvit.search.memory import measure_stage, plan_stage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def common_arguments(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with what the benchmarks of a step have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path(out), help="the results, JSON")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--sizes", choices=("auto", "paper", "small", "tiny"), default="auto",
        help="of the network; auto: paper (width 768) on a GPU, else small (192)")  # fmt: skip
    add("--tiny", action="store_true", help="a trial run: width 48, batches of 4, three rounds")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of ours; auto: bf16 on a GPU. The reference runs in fp32 and in this")  # fmt: skip
    add("--ratios", type=float, nargs="+", default=[1.0, 0.5], help="token ratios λ")
    add("--orders", type=int, nargs="+", choices=(1, 2), default=[1], help="of alpha's gradient")
    add("--batches", type=int, nargs="+", help="batch sizes (default: 64 on a GPU, 16 on a CPU)")
    add("--compile", action="store_true", help="ours through torch.compile")
    add("--cuda-graph", action="store_true", help="ours replayed as a CUDA graph, on a GPU")
    add("--rounds", type=int, default=10, help="of a comparison, at least 3")
    add("--seconds", type=float, default=8.0, help="no further round of a comparison after these")
    add("--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: the time that this process had, on a shared CPU")  # fmt: skip
    return parser


def prepare(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, schema: str
) -> tuple[argparse.Namespace, torch.device, Sizes, Results]:
    """The command line's settings, the device, the sizes, and results without rows. What cannot be
    ends the program with one line; what is left to the device is filled in. One thread on a CPU."""
    args = parser.parse_args(argv)
    try:
        device = resolve_device(args.device)
        gpu = device.type == "cuda"
        if args.cuda_graph:
            check_cuda_graph(device)
        auto = "tiny" if args.tiny else "paper" if gpu else "small"
        sizes = Sizes.of(auto if args.sizes == "auto" else args.sizes)
        args.batches = args.batches or [4 if args.tiny else 64 if gpu else 16]
        for ratio, batch_size in itertools.product(args.ratios, args.batches):
            search_config(Cell(stage=1, token_ratio=ratio, batch_size=batch_size), sizes)
    except ValueError as error:
        parser.error(" ".join(str(error).split()))
    if args.rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, but got {args.rounds}")
    if args.precision == "auto":
        args.precision = "bf16" if gpu else "fp32"
    if args.tiny:
        args.rounds, args.seconds = MIN_ROUNDS, 1.0
    torch.set_num_threads(1)
    results = Results(schema, args.out, device)
    results["plan"] = vars(args) | {"sizes": asdict(sizes)}
    return args, device, sizes, results


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


def methods(args: argparse.Namespace, device: torch.device, sizes: Sizes, out: Results) -> None:
    """A step of each method beside plain DARTS', on all tokens unless the method selects them."""
    for cell in _cells(args):
        batches = make_batches(cell, sizes, device)

        def maker(name: str, cell: Cell = cell, batches: Any = batches) -> Runner:
            runner = make_ours(cell, sizes, device, batches, method=name, precision=args.precision)
            if runner.step.config.method.frozen(10**9):  # alpha is never trained
                runner.batches = (batches[0], None)
            return runner

        names = ["darts", *(name for name in args.methods if name != "darts")]
        found = compare(
            {name: partial(maker, name) for name in names},
            device,
            rounds=args.rounds,
            seconds=args.seconds * len(names),
            clock=args.clock,
        )
        for name, row in found.items():
            line = asdict(cell) | {"variant": "method", "method": name} | row
            out["rows"].append(line | {"precision": args.precision})
            _say(cell, name, row)
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
            device,
            processes=count,
            seconds=args.seconds,
            precision=args.precision,
            cuda_graph=args.cuda_graph,
        )
        out["rows"].append(asdict(cell) | {"variant": "at once", "processes": count} | found)
        print(f"{cell}: {count} processes, {found}", flush=True)
        out.save()


def _say(cell: Cell, name: str, row: dict[str, Any]) -> None:
    time_taken = f"{1e3 * row['median_seconds']:.1f} ms, " if "median_seconds" in row else ""
    peak = f"{row['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in row else row["status"]
    print(f"{cell}: {name} {time_taken}{peak}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common_arguments(__doc__, "search_step.json")
    add = parser.add_argument
    add("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3],
        help="2, 4 and 6 layers with 8, 5 and 3 candidates per edge")  # fmt: skip
    add("--ways", nargs="+", choices=("ours", "reference"), default=["ours", "reference"])
    add("--profile", action="store_true", help="also the time of a step by kind of kernel")
    add("--lock", type=Path, metavar="FILE",
        help="several runs with one FILE compile at once and are timed one by one")  # fmt: skip
    add("--processes", type=int, default=1,
        help="above 1: images per second of one process, and of so many at once")  # fmt: skip
    add("--methods", nargs="*", metavar="NAME",
        help="only a step of each of these methods (no name: of all) beside DARTS'")  # fmt: skip
    add("--check-plan", action="store_true",
        help="only compare the plan of a stage's memory with what its step takes")  # fmt: skip
    args, device, sizes, out = prepare(parser, argv, "dasvit/search_step/2")
    work = check_plan if args.check_plan else several if args.processes > 1 else measure
    if args.methods is not None:
        args.methods, work = args.methods or method_names(), methods
        args.stages = [1]  # which all of them have
        if unknown := {*args.methods} - {*method_names()}:
            parser.error(f"--methods: unknown {', '.join(sorted(unknown))}")
    work(args, device, sizes, out)
    print(f"results: {args.out}")


if __name__ == "__main__":
    main()
