"""The paper's Figure 2 on digits: the share of `identity` and `zero` by epoch, plain DARTS beside
DASViT, over seeds.

    python benchmarks/collapse.py --seeds 4 --out docs/results/collapse

Writes OUT.json (every epoch's shares, the scores, machine, versions, commit), OUT.png and OUT.svg.
"""

import itertools
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dasvit.commands.arguments import parse
from dasvit.methods import DARTS, DASViT, get_method
from dasvit.presets import get_preset
from dasvit.report.plots import operation_shares, share_figure
from dasvit.report.record import read_trace
from dasvit.report.statistics import spread
from dasvit.report.style import save_figure
from dasvit.run.environment import environment
from dasvit.run.files import write_atomic
from dasvit.search.loop import search

SETTINGS = {method.title: method.name for method in (DARTS, DASViT)}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Search digits with both settings and draw the shares by epoch."""

    seeds: int = 4
    """Seeds per setting: 0, 1, …"""
    processes: int = 2
    """Searches at a time, one thread each."""
    out: Path = Path("docs/results/collapse")
    """Path of the results without their ending."""


def run(method: str, seed: int) -> dict[str, Any]:
    """One search; its shares by epoch and its scores."""
    torch.set_num_threads(1)
    config = get_preset("digits").search
    config = replace(config, method=get_method(method).like(config.method), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        result = search(config, folder)
        trace = read_trace(Path(folder) / "alpha.jsonl")
    print(f"{method} seed {seed}: {result.seconds:.0f} s, {result.genotype}", flush=True)
    return {
        "method": method,
        "seed": seed,
        **operation_shares(trace),
        "val_accuracy": [row["val_accuracy"] for row in trace],
        "supernet_accuracy": result.supernet_accuracy,
        "discretised_accuracy": result.discretised_accuracy,
        "seconds": result.seconds,
        "genotype": str(result.genotype),
        "identity_edges": result.genotype.operations.count("identity"),
    }


def main(args: Args) -> None:
    jobs = [(name, seed) for name in SETTINGS.values() for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.processes) as pool:
        runs = list(pool.map(run, *zip(*jobs, strict=True)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": f"python benchmarks/collapse.py --seeds {args.seeds}",
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "runs": runs,
    }
    write_atomic(args.out.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    by_setting = {
        title: [r for r in runs if r["method"] == name] for title, name in SETTINGS.items()
    }
    *before_last, _ = (stage.epochs for stage in get_preset("digits").search.stages)
    starts = list(itertools.accumulate(before_last))
    figure = share_figure(by_setting, stage_starts=starts, title="Digits: mean weight of all edges")
    save_figure(figure, args.out)
    for title, group in by_setting.items():
        for score in ("supernet_accuracy", "discretised_accuracy"):
            print(f"{title}: {score} {spread(r[score] for r in group).percent} %")


if __name__ == "__main__":
    main(parse(Args, sys.argv[1:]))
