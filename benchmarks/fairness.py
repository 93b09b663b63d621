"""What the fairness term does on digits: the weight of its skip penalty (a), and whether it bounds
the types of operations in the mean or on each edge, at two learning rates of the alphas.

    python benchmarks/fairness.py --seeds 3

Every search is of the `digits` preset, and its encoder is trained from scratch at that preset's
size on half of the training images and tested on the other half; test images are not used. Writes
OUT.json after every search, where the same command goes on, and OUT.md: how many operations are
skips, searches that were kept from a blind encoder, changes of stage that drop to chance.
"""

import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dasvit.commands.arguments import parse
from dasvit.presets import get_preset
from dasvit.report.events import Event, StageEnd
from dasvit.report.statistics import spread
from dasvit.run.environment import environment
from dasvit.run.files import write_atomic
from dasvit.search.loop import search
from dasvit.spaces.cell import derive, prune
from dasvit.training.loop import retrain

SETTINGS = [
    {"alpha_lr": alpha_lr, "type_scope": type_scope, "skip_weight": skip_weight}
    for alpha_lr in (3e-3, 3e-2)
    for type_scope in ("mean", "edge")
    for skip_weight in (0.05, 0.1, 1.0)
]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Search digits under each setting of the fairness term, and train what is found."""

    seeds: int = 3
    """Seeds per setting: 0, 1, …"""
    epochs: int = 8
    """Epochs of training an encoder from scratch."""
    out: Path = Path("docs/results/fairness.json")
    """File of the results; the table is beside it."""


def run(settings: dict[str, Any], seed: int, epochs: int) -> dict[str, Any]:
    """One search and training. "repaired": where an operation that mixes tokens was put in."""
    preset = get_preset("digits")
    config = preset.search.replaced(**settings, seed=seed)
    pruning = patch.object(prune, "_keep_one_that_mixes", wraps=prune._keep_one_that_mixes)
    deriving = patch.object(derive, "_open_its_eyes", wraps=derive._open_its_eyes)
    with tempfile.TemporaryDirectory() as folder, pruning as kept, deriving as opened:

        def report(event: Event) -> None:
            if isinstance(event, StageEnd) and event.kept is not None:
                opened.reset_mock()  # not of the last stage

        found = search(config, f"{folder}/search", report=report)
        own = {"epochs": epochs, "seed": seed, "model": f"{folder}/search/genotype.json"}
        training = replace(preset.retrain, held_out=config.val_fraction, **own)
        trained = retrain(training, f"{folder}/training")
    return {
        **settings,
        "seed": seed,
        "genotype": str(found.genotype),
        "identity_edges": found.genotype.operations.count("identity"),
        "edges": len(found.genotype.operations),
        "repaired": [name for name, m in (("prune", kept), ("derive", opened)) if m.called],
        "stages": found.stages,
        "supernet_accuracy": found.supernet_accuracy,
        "discretised_accuracy": found.discretised_accuracy,
        "balanced_accuracy": trained.balanced_accuracy,
        "num_params": trained.num_params,
        "search_seconds": found.seconds,
        "training_seconds": trained.seconds,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The runs of one setting, by column."""
    first, stages = rows[0], [stage for row in rows for stage in row["stages"]]
    drops = sum(stage["accuracy_after"] <= 1.5 * stage["largest_class"] for stage in stages)
    return {
        "a": f"{first['skip_weight']:g}",
        "rate of alpha": f"{first['alpha_lr']:g}",
        "type_scope": first["type_scope"],
        "skips": f"{sum(r['identity_edges'] for r in rows)} of {sum(r['edges'] for r in rows)}",
        "repaired": f"{sum(bool(r['repaired']) for r in rows)} of {len(rows)}",
        "drops": f"{drops} of {len(stages)}",
        "supernet %": spread(r["supernet_accuracy"] for r in rows).percent,
        "trained %": spread(r["balanced_accuracy"] for r in rows).percent,
        "parameters": f"{sum(r['num_params'] for r in rows) / len(rows) / 1e6:.2f} M",
    }


def main(args: Args) -> None:
    torch.set_num_threads(1)
    facts: dict[str, Any] = {"command": f"python benchmarks/fairness.py --seeds {args.seeds}"}
    facts |= {"epochs": args.epochs, "environment": environment(), "runs": []}
    if args.out.exists():
        facts["runs"] = json.loads(args.out.read_text(encoding="utf-8"))["runs"]
    for seed, settings in itertools.product(range(args.seeds), SETTINGS):
        wanted = settings | {"seed": seed}
        if not any(wanted.items() <= row.items() for row in facts["runs"]):
            facts["runs"].append(run(settings, seed, args.epochs))
            facts["date"] = time.strftime("%Y-%m-%d")
            write_atomic(args.out, json.dumps(facts, indent=1) + "\n")
    done = facts["runs"]
    table = [summary([r for r in done if s.items() <= r.items()]) for s in SETTINGS]
    lines = ["| " + " | ".join(cells) + " |" for cells in (table[0], ["---"] * len(table[0]))]
    lines += ["| " + " | ".join(cells.values()) + " |" for cells in table]
    title = f"`{facts['command']}`; trained: balanced accuracy after {args.epochs} epochs"
    write_atomic(args.out.with_suffix(".md"), "\n".join([title, "", *lines, ""]))


if __name__ == "__main__":
    main(parse(Args, sys.argv[1:]))
