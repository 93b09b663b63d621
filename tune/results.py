"""What a sweep leaves for people: leaderboard, genotypes, the best model. No Ray."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasvit.report.events import edge_name
from dasvit.report.plots import save_encoder
from dasvit.run.files import replace_folder, write_atomic
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.model_folder import MODEL_DIR
from tune.aggregate import (
    ConfigSummary,
    EdgeVote,
    GenotypeSummary,
    ModelSummary,
    rank_configs,
    vote,
)
from tune.folder import ResultFolder
from tune.leaderboard import markdown, table_csv
from tune.outcome import VIT, Outcome, best_retraining
from tune.page import write_page
from tune.plan import Plan
from tune.study import JOURNAL_FILE, write_study
from tune.trials import SearchTrial, retrain_dirname

__all__ = ["save_genotypes", "save_random_genotypes", "write_results"]

SCHEMA = "dasvit/genotypes/1"


def save_genotypes(ranking: Sequence[GenotypeSummary], folder: ResultFolder) -> list[str]:
    """Write each genotype as `genotypes/<hash>.json`, with where it came from; their hashes."""
    folder.genotypes_dir.mkdir(parents=True, exist_ok=True)
    for summary in ranking:
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
    return [summary.hash for summary in ranking]


def save_random_genotypes(genotypes: Sequence[Genotype], folder: ResultFolder) -> None:
    """Write each as `genotypes/<hash>.json`."""
    folder.genotypes_dir.mkdir(parents=True, exist_ok=True)
    for genotype in genotypes:
        genotype.save(folder.genotypes_dir / f"{genotype.canonical_hash}.json")


def write_results(plan: Plan, outcome: Outcome, folder: ResultFolder, *, preset: str) -> None:
    """Write leaderboard.md, leaderboard.csv, genotypes.json, genotypes/, optuna.journal, best/ and
    report.html.

    Args:
        plan: what the sweep computes.
        outcome: what it has computed.
        folder: where to write.
        preset: that the plan began from, for the commands that the report shows.
    """
    save_random_genotypes(outcome.random, folder)
    save_genotypes(outcome.ranking, folder)
    ranking = outcome.ranking
    configs = rank_configs(outcome.search, outcome.metric)
    votes = vote(
        [trial.genotype for trial in outcome.search],
        outcome.operations,
        edges_per_node=outcome.edges_per_node,
    )
    write_atomic(folder.root / "leaderboard.md", markdown(outcome, ranking, configs, votes))
    write_atomic(folder.root / "leaderboard.csv", table_csv(outcome, ranking))
    values = _genotypes(outcome, ranking, configs, votes)
    write_atomic(folder.root / "genotypes.json", json.dumps(values, indent=2) + "\n")
    if configs:
        write_study(
            folder.root / JOURNAL_FILE,
            configs,
            outcome.metric,
            name=outcome.name,
            stopped=outcome.stopped,
            costs=_cost_by_config(outcome),
        )
    _copy_best(outcome, folder)
    write_page(plan, outcome, folder, preset=preset)


def _genotypes(
    outcome: Outcome,
    ranking: Sequence[GenotypeSummary],
    configs: Sequence[ConfigSummary],
    votes: Sequence[EdgeVote],
) -> dict[str, Any]:
    models = outcome.models
    on_front = {summary.hash for summary in outcome.front}
    return {
        "schema": SCHEMA,
        "sweep": outcome.name,
        "ranked_by": outcome.metric,
        "genotypes": [
            {
                "rank": rank,
                "hash": summary.hash,
                "encoder": str(summary.genotype),
                "genotype": summary.genotype.to_dict(),
                "count": summary.count,
                **_spreads(summary),
                "costs": outcome.costs.get(summary.hash),
                "on_front": summary.hash in on_front if outcome.costs else None,
                "trials": [_trial(trial) for trial in summary.trials],
                "retrained": _model(models.get(summary.hash)),
            }
            for rank, summary in enumerate(ranking, start=1)
        ],
        "random": [
            {
                "hash": genotype.canonical_hash,
                "encoder": str(genotype),
                "genotype": genotype.to_dict(),
                "retrained": _model(models.get(genotype.canonical_hash)),
            }
            for genotype in outcome.random
        ],
        "baseline": _model(models.get(VIT)),
        "votes": [
            {"edge": edge_name(v.source, v.node), "agreement": v.agreement, **dataclasses.asdict(v)}
            for v in votes
        ],
        "configurations": [
            {
                "config_index": config.config_index,
                "settings": config.settings,
                **_spreads(config),
                "genotypes": list(config.genotypes),
            }
            for config in configs
        ],
        "stopped": [dataclasses.asdict(stop) for stop in outcome.stopped],
        "not_finished": [dataclasses.asdict(failure) for failure in outcome.failures],
    }


def _cost_by_config(outcome: Outcome) -> dict[int, list[int]]:
    """What is minimised, a configuration each; with several objectives each has one seed."""
    return {
        trial.config_index: [
            outcome.costs[trial.genotype.canonical_hash][name] for name in outcome.objectives[1:]
        ]
        for trial in outcome.search
        if outcome.costs
    }


def _spreads(summary: GenotypeSummary | ConfigSummary) -> dict[str, Any]:
    return {
        name: dataclasses.asdict(getattr(summary, name))
        for name in ("discretised_accuracy", "supernet_accuracy", "gap")
    }


def _trial(trial: SearchTrial) -> dict[str, Any]:
    values = {f.name: getattr(trial, f.name) for f in dataclasses.fields(trial)}
    values.pop("genotype")
    return values | {"gap": trial.gap}


def _model(model: ModelSummary | None) -> dict[str, Any] | None:
    return None if model is None else dataclasses.asdict(model)


def _copy_best(outcome: Outcome, folder: ResultFolder) -> None:
    """best/ is whole or not there: `python -m dasvit evaluate` runs on it."""
    best = best_retraining(outcome)
    if best is None:
        # An earlier report's best is of another encoder: none is better than a wrong one.
        shutil.rmtree(folder.best_dir, ignore_errors=True)
        return
    source = folder.retrain_dir / retrain_dirname(best.model, best.seed)

    def fill(fresh: Path) -> None:
        for name in ("config.json", "genotype.json", "result.json"):
            shutil.copyfile(source / name, fresh / name)
        shutil.copytree(source / MODEL_DIR, fresh / MODEL_DIR)
        genotype = Genotype.load(source / "genotype.json")
        save_encoder(genotype, fresh / "encoder", f"{outcome.name}: best encoder")

    replace_folder(folder.best_dir, fill)
