"""`memory`: plan peak memory before launch."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from dasvit.commands.arguments import Arg
from dasvit.commands.console import told
from dasvit.run.settings import require
from dasvit.search.config import SearchConfig

__all__ = ["Args", "run"]

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Args:
    """Plan a search's peak memory before launch, without a GPU.

    Every stage, first and second order, at the configured λ and at 1, 0.5 and 0.25 where the method
    selects tokens. Seconds to a few minutes; nothing is trained.
    python -m dasvit memory --preset cifar10 --batch-size 64 --budget 24GiB
    """

    essentials: ClassVar[tuple[str, ...]] = (
        *("preset", "method", "budget", "plot", "check", "device", "json", "image_size", "dim"),
        *("patch_size", "stage_layers", "batch_size", "token_ratio", "xi", "precision"),
        *("recompute", "compile", "cuda_graph"),
    )

    search: SearchConfig
    preset: Annotated[str, Arg(metavar="NAME")] = "cifar10"
    """Where the settings start; the same names as for search."""
    method: Annotated[str, Arg(metavar="NAME")] = "dasvit"
    """How it searches: dasvit, darts, or one that a module of --plugins registers."""
    budget: Annotated[str | None, Arg(metavar="BYTES")] = None
    """Memory of the device, such as 24GiB: which batches and settings fit. A sixteenth of it, at
    most 1 GiB, is left to what no plan sees."""
    plot: Annotated[str | None, Arg(metavar="PATH")] = None
    """Draw memory against batch size (the paper's Figure 1) to this path, as PNG and SVG."""
    check: bool = False
    """Compare with steps that are really run on --device, at the configured λ and order."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """Of --check: auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""

    @property
    def idle(self) -> set[str]:
        """Settings that change no memory; of the method's numbers those that its lightest and
        heaviest settings have in common."""
        method = self.search.method
        others = (*method.lighter(), method.heaviest(weight_lr=self.search.weight_lr))
        same = {n for n in method.outer if len({getattr(m, n) for m in others}) == 1}
        return same | {
            *("data_dir", "download", "augment", "test_fraction", "in_memory", "num_workers"),
            *("weight_lr", "lr_span", "weight_decay", "checkpoint_epochs", "eval_epochs", "seed"),
            *("alpha_lr", "alpha_betas", "alpha_weight_decay", "alpha_init_std"),
            *("stage_epochs", "alpha_freeze_epochs", "inherit_alpha"),
        }

    def __post_init__(self) -> None:
        alone = self.budget is None and self.plot is None
        require(
            not self.check or alone,
            "check runs steps at one batch size; leave budget and plot out",
        )
        require(
            not self.check or not (self.search.compile or self.search.cuda_graph),
            "check runs steps as they are planned; leave compile and cuda_graph out",
        )
        if self.plot is not None:
            folder = next(p for p in Path(self.plot).absolute().parents if p.exists())
            require(
                self.plot != "" and folder.is_dir() and os.access(folder, os.W_OK),
                f"plot must be a path that can be written to, but got {self.plot!r}",
            )


def run(args: Args) -> None:
    """Print the plan as a table or as JSON, and draw it."""
    from dasvit.commands.memory_report import (
        figure_1,
        format_table,
        memory_figure,
        memory_table,
        parse_bytes,
    )
    from dasvit.report.style import save_figure
    from dasvit.search.checks import check_supernet
    from dasvit.search.memory import largest_half, what_fits

    config = args.search
    budget = None if args.budget is None else parse_bytes(args.budget)
    check_supernet(config)
    if args.check:
        _check(args)
        return
    rows = memory_table(config, told)
    fits = what_fits(config, budget, told) if budget else []
    if args.json:
        values = [
            row | {"stages": [dataclasses.asdict(plan) for plan in row["stages"]]} for row in rows
        ]
        print(json.dumps({"batch_size": config.batch_size, "plans": values, "fits": dict(fits)}))
    else:
        recomputed = ", recomputed" if config.space.recompute else ""
        print(f"planned peak memory, batch {config.batch_size}, {config.precision}{recomputed}")
        print(format_table(rows))
        for flags, batch in fits:
            what = f"--batch-size {batch}" if batch else "not even one image"
            if batch == largest_half(config):
                what += ", a half of the data set"
            print(f"within {args.budget}{' with ' if flags else ''}{flags}: {what}")
    if args.plot:
        told("drawing memory against batch size")
        figure = memory_figure(
            figure_1(config),
            budget=budget / GIB if budget else 24.0,
            title=f"{args.preset}: a search step",
        )
        for path in save_figure(figure, args.plot):
            print(path, file=sys.stderr if args.json else sys.stdout)


def _check(args: Args) -> None:
    """Planned and measured peaks of every stage, and the plan's error."""
    from dasvit.run.environment import resolve_device
    from dasvit.search.memory import measure_stage, plan_stage

    config, device = args.search, resolve_device(args.device)
    rows: list[tuple[int, int, int | None]] = []
    for stage in range(len(config.stages)):
        told(f"stage {stage + 1} on {device}")
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
        found = f"{measured / GIB:.3f}" if measured else "out of memory"
        error = f"{100 * (planned / measured - 1):+.1f} %" if measured else "–"
        print(f"| {stage + 1} | {planned / GIB:.3f} | {found} | {error} |")
