"""`memory`: plan peak memory before launch."""

import dataclasses
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dasvit.commands.memory_report import (
    figure_1,
    format_table,
    memory_figure,
    memory_table,
    parse_bytes,
)
from dasvit.report.plots import save_figure
from dasvit.report.style import save_figure
from dasvit.run.environment import resolve_device
from dasvit.run.settings import require
from dasvit.search.config import SearchConfig
from dasvit.search.loop import check_supernet
from dasvit.search.memory import largest_half, measure_stage, plan_stage, what_fits

__all__ = ["MemoryArgs", "run"]


@dataclass(frozen=True, kw_only=True)
class MemoryArgs:
    """Plan a search's peak memory before launch, without a GPU.

    Every stage, first and second order, at the configured λ and at 1, 0.5 and 0.25. Seconds to a
    few minutes; nothing is trained.
    Example: python -m dasvit memory --preset cifar10 --batch-size 64 --budget 24GiB
    """

    config: SearchConfig
    preset: str = "cifar10"
    """Where the settings start; the same names as for search."""
    budget: str | None = None
    """Memory of the device, 24GiB say: which batches and settings fit. A sixteenth of it, at most
    1 GiB, is left to what no plan sees."""
    plot: str | None = None
    """Draw memory against batch size (the paper's Figure 1) to this path, as PNG and SVG."""
    check: bool = False
    """Compare with steps that are really run on --device, at the configured λ and order; on a GPU
    with PyTorch's own peak."""
    device: str = "auto"
    """Of --check: auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""


def _check(args: MemoryArgs) -> None:
    """Planned and measured peaks of every stage, and the plan's error."""
    config, device = args.config, resolve_device(args.device)
    require(
        not (config.compile or config.cuda_graph),
        "check runs steps as they are planned; leave compile and cuda_graph out",
    )
    rows: list[tuple[int, int, int | None]] = []
    for stage in range(len(config.stages)):
        print(f"stage {stage + 1} on {device} …", file=sys.stderr, flush=True)
        measured = measure_stage(config, stage, device)
        rows.append((stage, plan_stage(config, stage).peak, measured))
    if args.json:
        values = [
            {"stage": s, "planned": p, "measured": m, "error": p / m - 1 if m else None}
            for s, p, m in rows
        ]
        print(json.dumps({"device": str(device), "stages": values}))
        return
    print("| stage | planned (GiB) | measured (GiB) | error |\n| --- | --- | --- | --- |")
    for stage, planned, measured in rows:
        found = f"{measured / 2**30:.3f}" if measured else "out of memory"
        error = f"{100 * (planned / measured - 1):+.1f} %" if measured else "–"
        print(f"| {stage + 1} | {planned / 2**30:.3f} | {found} | {error} |")


def run(args: MemoryArgs) -> None:
    config = args.config
    budget = None if args.budget is None else parse_bytes(args.budget)
    require(
        not args.check or (args.budget is None and args.plot is None),
        "check runs steps at one batch size; leave budget and plot out",
    )
    if args.plot is not None:
        folder = next(p for p in Path(args.plot).absolute().parents if p.exists())
        require(
            args.plot != "" and folder.is_dir() and os.access(folder, os.W_OK),
            f"plot must be a path that can be written to, but got {args.plot!r}",
        )
    check_supernet(config)
    if args.check:
        _check(args)
        return

    def progress(line: str) -> None:
        print(f"{line} …", file=sys.stderr, flush=True)

    rows = memory_table(config, progress)
    fits = what_fits(config, budget, progress) if budget else []
    if args.json:
        values = [
            row | {"stages": [dataclasses.asdict(plan) for plan in row["stages"]]} for row in rows
        ]
        print(json.dumps({"batch_size": config.batch_size, "plans": values, "fits": dict(fits)}))
    else:
        print(
            f"planned peak memory, batch {config.batch_size}, {config.precision}"
            f"{', recomputed' if config.space.recompute else ''}\n{format_table(rows)}"
        )
        for flags, batch in fits:
            what = f"--batch-size {batch}" if batch else "not even one image"
            if batch == largest_half(config):
                what += ", a half of the data set"
            print(f"within {args.budget}{' with ' if flags else ''}{flags}: {what}")
    if args.plot:
        progress("drawing memory against batch size")
        gib = budget / 2**30 if budget else 24.0
        figure = memory_figure(figure_1(config), budget=gib, title=f"{args.preset}: a search step")
        # An ending that names one of the two files is no part of their name.
        for path in save_figure(figure, re.sub(r"\.(png|svg)$", "", args.plot)):
            print(path, file=sys.stderr if args.json else sys.stdout)
