"""`memory`: plan peak memory before launch."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from dasvit.config import SearchConfig
from dasvit.memory import what_fits
from dasvit.memory_report import (
    figure_1,
    format_table,
    memory_figure,
    memory_table,
    parse_bytes,
    save_figure,
)
from dasvit.search import check_supernet

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
    """Memory of the device, 24GiB say: which batches and settings fit."""
    plot: str | None = None
    """Draw memory against batch size (the paper's Figure 1) to this path, as PNG and SVG."""
    json: bool = False
    """Print JSON."""


def run(args: MemoryArgs) -> None:
    config = args.config
    budget = parse_bytes(args.budget) if args.budget else None
    check_supernet(config)

    def progress(line: str) -> None:
        print(f"{line} …", file=sys.stderr, flush=True)

    rows = memory_table(config, progress)
    if budget:
        progress("looking for what fits")
    fits = what_fits(config, budget) if budget else []
    if args.json:
        values = [
            row | {"stages": [dataclasses.asdict(plan) for plan in row["stages"]]} for row in rows
        ]
        print(json.dumps({"batch_size": config.batch_size, "plans": values, "fits": dict(fits)}))
    else:
        print(
            f"planned peak memory in GiB, batch {config.batch_size}, {config.precision}"
            f"{', recomputed' if config.recompute else ''}\n{format_table(rows)}"
        )
        for flags, batch in fits:
            what = f"--batch-size {batch}" if batch else "not even one image"
            print(f"within {args.budget}{' with ' if flags else ''}{flags}: {what}")
    if args.plot:
        progress("drawing memory against batch size")
        gib = budget / 2**30 if budget else 24.0
        figure = memory_figure(figure_1(config), budget=gib, title=f"{args.preset}: a search step")
        for path in save_figure(figure, Path(args.plot)):
            print(path, file=sys.stderr if args.json else sys.stdout)
