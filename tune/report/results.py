"""What a sweep leaves for people: leaderboard, genotypes, the page, the best model."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from dasvit.report.encoder import encoder_figure
from dasvit.report.events import edge_name
from dasvit.report.statistics import Spread
from dasvit.report.style import save_figure
from dasvit.run.files import replace_folder, write_atomic
from dasvit.spaces.cell.genotype import Genotype
from tune.report.aggregate import rung_score
from tune.report.means import write_means
from tune.report.outcome import VIT, Outcome, best_retraining
from tune.report.page import leaderboard_text, page_text
from tune.report.tables import scores
from tune.store import ResultFolder
from tune.trial_folder import SearchTrial, retrain_dirname

__all__ = ["save_genotypes", "write_results"]

SCHEMA = "dasvit/genotypes/2"


def save_genotypes(outcome: Outcome, folder: ResultFolder) -> None:
    """Write each encoder, found or drawn, as `genotypes/<hash>.json`; the found ones with where
    they came from."""
    folder.genotypes_dir.mkdir(parents=True, exist_ok=True)
    for name, genotype in outcome.drawn.items():
        genotype.save(folder.genotypes_dir / f"{name}.json")
    for summary in outcome.encoders:
        if not summary.trials:
            continue
        sources = [
            {
                "trial": trial.name,
                "seed": trial.seed,
                "settings": trial.settings,
                "alpha_trace": f"search/{trial.name}/alpha.jsonl",
            }
            for trial in summary.trials
        ]
        genotype = Genotype(summary.genotype.nodes, {"sweep": folder.root.name, "trials": sources})
        genotype.save(folder.genotypes_dir / f"{summary.hash}.json")


def write_results(outcome: Outcome, folder: ResultFolder, *, preset: str) -> None:
    """Write leaderboard.md, leaderboard.csv, genotypes.json, genotypes/, mean/, best/ and
    report.html.

    Args:
        outcome: what the sweep has computed.
        folder: where to write.
        preset: that the plan began from, for the commands that the report shows.
    """
    save_genotypes(outcome, folder)
    write_means(outcome, folder)
    _copy_best(outcome, folder)
    for name, text in {
        "leaderboard.md": leaderboard_text(outcome),
        "leaderboard.csv": scores(outcome).to_csv(index=False, lineterminator="\n"),
        "genotypes.json": json.dumps(_genotypes(outcome), indent=2) + "\n",
        "report.html": page_text(outcome, folder, preset=preset),
    }.items():
        write_atomic(folder.root / name, text)


def _genotypes(outcome: Outcome) -> dict[str, Any]:
    on_front = {summary.hash for summary in outcome.front}
    return {
        "schema": SCHEMA,
        "sweep": outcome.name,
        "ranked_by": outcome.metric,
        "genotypes": [
            {
                "rank": rank,
                **_encoder(summary.genotype),
                "count": len(summary.trials),
                "origin": summary.origin,
                **_spreads(summary.scores()),
                "rungs": _rungs(outcome, summary.hash),
                "costs": outcome.costs.get(summary.hash),
                "on_front": summary.hash in on_front if outcome.costs else None,
                "trials": [_trial(trial) for trial in summary.trials],
                "retrained": _model(outcome, summary.hash),
            }
            for rank, summary in enumerate(outcome.ranking, start=1)
        ],
        "random": [
            {**_encoder(genotype), "retrained": _model(outcome, genotype.canonical_hash)}
            for genotype in outcome.random
        ],
        "baseline": _model(outcome, VIT),
        "baseline_rungs": _rungs(outcome, VIT),
        "winner": outcome.winner and outcome.winner.hash,
        "as_good": [encoder.hash for encoder in outcome.as_good],
        "largest_class": outcome.largest_class,
        "votes": [
            {"edge": edge_name(v.source, v.node), "agreement": v.agreement, **dataclasses.asdict(v)}
            for v in outcome.votes
        ],
        "configurations": [
            {
                "config_index": config.config_index,
                "settings": config.settings,
                **_spreads(config.scores()),
                "genotypes": config.genotypes,
            }
            for config in outcome.configs
        ],
        "stopped": [dataclasses.asdict(stop) for stop in outcome.stopped],
        "not_finished": [dataclasses.asdict(failure) for failure in outcome.failures],
    }


def _encoder(genotype: Genotype) -> dict[str, Any]:
    name = genotype.canonical_hash
    return {"hash": name, "encoder": str(genotype), "genotype": genotype.to_dict()}


def _spreads(spreads: dict[str, Spread]) -> dict[str, Any]:
    return {name: dataclasses.asdict(spread) for name, spread in spreads.items()}


def _rungs(outcome: Outcome, name: str) -> list[dict[str, Any]]:
    """The accuracy of a model on each rung that it has reached."""
    return [
        {"epochs": rung.epochs, **dataclasses.asdict(rung_score(rung.results[name]))}
        for rung in outcome.rungs
        if name in rung.results
    ]


def _trial(trial: SearchTrial) -> dict[str, Any]:
    values = {f.name: getattr(trial, f.name) for f in dataclasses.fields(trial)}
    del values["genotype"], values["short"]
    values["proposals"] = [genotype.canonical_hash for genotype in trial.proposals]
    return values | {"gap": trial.gap, "trained_accuracy": trial.trained_accuracy}


def _model(outcome: Outcome, name: str) -> dict[str, Any] | None:
    model = outcome.models.get(name)
    if model is None:
        return None
    names = ["test_top1", "test_top5", "train_accuracy"]
    if model.knows_classes:
        names.append("balanced_accuracy")
    accuracies = _spreads(model.scores(names))
    seconds = _spreads(model.scores(["seconds"]))
    return {"model": name, **accuracies, "num_params": model.num_params, **seconds}


def _copy_best(outcome: Outcome, folder: ResultFolder) -> None:
    """best/ is whole or not there: `python -m dasvit evaluate` runs on it."""
    best = best_retraining(outcome)
    if best is None:
        # An earlier report's best is of another encoder: none is better than a wrong one.
        shutil.rmtree(folder.best_dir, ignore_errors=True)
        return
    source = folder.retrain_dir / retrain_dirname(best.model, best.seed)
    genotype = Genotype.load(source / "genotype.json")

    def fill(fresh: Path) -> None:
        for name in ("config.json", "genotype.json", "result.json"):
            shutil.copyfile(source / name, fresh / name)
        shutil.copytree(source / "model", fresh / "model")
        save_figure(encoder_figure(genotype, f"{outcome.name}: best encoder"), fresh / "encoder")

    replace_folder(folder.best_dir, fill)
