"""Which settings of a search give better encoders: each setting by itself, beside the others' base.

    python benchmarks/variants.py --seeds 5
    python benchmarks/variants.py --seeds 5 --data-dir DIR

On the embedded digits; or with DIR on the part of Fashion-MNIST's training images that
benchmarks/ranking.py takes. What a search finds is trained from scratch on half of the training
images and tested on the other half; test images are not read. Writes OUT.json after every search,
where the same command goes on, then OUT.md.
"""

import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.ranking import write_part
from benchmarks.tables import markdown
from dasvit.commands.arguments import parse
from dasvit.presets import Preset, get_preset
from dasvit.report.events import Event, StageEnd
from dasvit.report.statistics import spread
from dasvit.run.environment import environment
from dasvit.run.files import write_atomic
from dasvit.search.loop import search
from dasvit.spaces.cell import derive, prune
from dasvit.training.loop import retrain

Row = dict[str, Any]

BASE: Row = {"alpha_lr": 3e-2, "skip_weight": 0.1, "type_scope": "mean", "token_ratio": 0.5}
VARIANTS: dict[str, Row] = {
    "base": {},
    "rate of alpha 0.003": {"alpha_lr": 3e-3},
    "rate of alpha 0.1": {"alpha_lr": 0.1},
    "a = 0.01": {"skip_weight": 0.01},
    "a = 1": {"skip_weight": 1.0},
    "types bounded per edge": {"type_scope": "edge"},
    "all tokens": {"token_ratio": 1.0},
    "stages of 4, 6, 8 layers": {"stage_layers": (4, 6, 8)},
    "zero pruned first": {"prune_zero": "first"},
    "alpha still for half of each stage": {"alpha_freeze_epochs": 0.5},
    "twice the epochs": {"stage_epochs": 2.0},
}
"""By name, what differs from `BASE`; epochs as a share of a stage's."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """Search under each setting, and train what is found."""

    seeds: int = 5
    """Seeds per setting: 0, 1, …"""
    data_dir: Path | None = None
    """Folder that holds Fashion-MNIST; without it the digits are searched."""
    processes: int = 2
    """Searches at a time, one thread each."""
    out: Path | None = None
    """File of the results; by default docs/results/variants_digits.json or its like."""


def preset_of(data_dir: str | None) -> Preset:
    """The digits' preset; or Fashion-MNIST at the size that benchmarks/ranking.py trains."""
    if data_dir is None:
        return get_preset("digits")
    preset = get_preset("fashion_mnist")
    data = replace(preset.search.data, data_dir=data_dir)
    return replace(
        preset,
        search=preset.search.replaced(data=data, stage_epochs=4),
        retrain=replace(preset.retrain, data=data),
    )


def run(data_dir: str | None, name: str, seed: int) -> Row:
    """One search and training. "repaired": where an operation that mixes tokens was put in."""
    torch.set_num_threads(1)
    preset = preset_of(data_dir)
    config, settings = preset.search.replaced(**BASE, seed=seed), dict(VARIANTS[name])
    for epochs in settings.keys() & {"stage_epochs", "alpha_freeze_epochs"}:
        settings[epochs] = round(settings[epochs] * config.method.stage_epochs)
    config = config.replaced(**settings)
    pruning = patch.object(prune, "_keep_one_that_mixes", wraps=prune._keep_one_that_mixes)
    deriving = patch.object(derive, "_open_its_eyes", wraps=derive._open_its_eyes)
    with tempfile.TemporaryDirectory() as folder, pruning as kept, deriving as opened:

        def report(event: Event) -> None:
            if isinstance(event, StageEnd) and event.kept is not None:
                opened.reset_mock()  # not of the last stage

        found = search(config, f"{folder}/search", report=report)
        training = replace(
            preset.retrain,
            model=f"{folder}/search/genotype.json",
            epochs=preset.score_epochs,
            warmup_epochs=1,
            held_out=config.val_fraction,
            seed=seed,
        )
        trained = retrain(training, f"{folder}/training")
    return {
        "variant": name,
        "seed": seed,
        "settings": BASE | settings,
        "genotype": str(found.genotype),
        "hash": found.genotype.canonical_hash,
        "identity_edges": found.genotype.operations.count("identity"),
        "edges": len(found.genotype.operations),
        "repaired": [where for where, m in (("prune", kept), ("derive", opened)) if m.called],
        "stages": found.stages,
        "supernet_accuracy": found.supernet_accuracy,
        "discretised_accuracy": found.discretised_accuracy,
        "balanced_accuracy": trained.balanced_accuracy,
        "num_params": trained.num_params,
        "search_seconds": found.seconds,
        "training_seconds": trained.seconds,
    }


def summary(name: str, rows: list[Row]) -> Row:
    """The runs of one setting, by column."""
    stages = [stage for row in rows for stage in row["stages"]]
    drops = sum(stage["accuracy_after"] <= 1.5 * stage["largest_class"] for stage in stages)
    return {
        "setting": name,
        "trained %": spread(r["balanced_accuracy"] for r in rows).percent,
        "parameters": f"{sum(r['num_params'] for r in rows) / len(rows) / 1e6:.2f} M",
        "supernet %": spread(r["supernet_accuracy"] for r in rows).percent,
        "skips": f"{sum(r['identity_edges'] for r in rows)} of {sum(r['edges'] for r in rows)}",
        "stage changes to chance": f"{drops} of {len(stages)}",
        "repaired": f"{sum(bool(r['repaired']) for r in rows)} of {len(rows)}",
        "search s": f"{sum(r['search_seconds'] for r in rows) / len(rows):.0f}",
    }


def page(facts: Row) -> str:
    """A row per setting, of the searches that are done."""
    by_name = {name: [r for r in facts["runs"] if r["variant"] == name] for name in VARIANTS}
    table = markdown(summary(name, rows) for name, rows in by_name.items() if rows)
    return f"`{facts['command']}`\n\n{table}\n"


def main(args: Args) -> None:
    data = "digits" if args.data_dir is None else "fashion_mnist"
    out = args.out or Path(f"docs/results/variants_{data}.json")
    facts: Row = {"runs": []}
    if out.exists():
        facts = json.loads(out.read_text(encoding="utf-8"))
    where = "" if args.data_dir is None else " --data-dir DIR"
    facts["command"] = f"python benchmarks/variants.py --seeds {args.seeds}{where}"
    facts |= {"base": BASE, "environment": environment()}
    done = {(row["variant"], row["seed"]) for row in facts["runs"]}
    wanted = [(n, seed) for seed in range(args.seeds) for n in VARIANTS if (n, seed) not in done]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.processes) as pool:
        if args.data_dir is not None:
            write_part(args.data_dir, Path(folder))
        part = None if args.data_dir is None else folder
        for future in as_completed([pool.submit(run, part, *job) for job in wanted]):
            facts["runs"].append(future.result() | {"commit": facts["environment"]["git_commit"]})
            facts["date"] = time.strftime("%Y-%m-%d")
            write_atomic(out, json.dumps(facts) + "\n")
            print(f"{len(facts['runs'])} of {args.seeds * len(VARIANTS)} searches", flush=True)
    write_atomic(out.with_suffix(".md"), text := page(facts))
    print(text)


if __name__ == "__main__":
    main(parse(Args, sys.argv[1:]))
