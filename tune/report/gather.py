"""A sweep's outcome, from the trials' folders."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tune.folder import ResultFolder
from tune.objectives import cost, vit_cost
from tune.plan import Plan
from tune.report.outcome import VIT, Outcome
from tune.trials import (
    Failure,
    RetrainTrial,
    SearchTrial,
    StoppedTrial,
    load_retrain_trial,
    load_search_trial,
    read_failure,
    read_stop,
    retrain_dirname,
    search_dirname,
)

__all__ = ["PHASES", "gather", "gather_retrainings", "gather_searches", "wall_of"]

PHASES = ("search", "check", "retraining")


def gather(plan: Plan, folder: ResultFolder, *, name: str, wall: dict[str, float]) -> Outcome:
    """The state of a sweep.

    Args:
        plan: what it computes.
        folder: where its trials' folders are.
        name: of the sweep.
        wall: see `Outcome`.

    Raises:
        ValueError: a malformed result file.
    """
    indices = range(plan.num_configs)
    searched, stopped, left = gather_searches(folder.search_dir, indices, plan.search_seeds)
    outcome = Outcome(
        name=name,
        plan=plan,
        search=tuple(searched),
        not_searched=tuple(left),
        stopped=tuple(stopped),
        costs=_costs(plan, searched),
        random=plan.random_genotypes(),
        wall=wall,
    )
    best = [config.config_index for config in outcome.best_configs(plan.retrain_top)]
    checked, _, not_checked = gather_searches(folder.search_dir, best, plan.fresh_seeds)
    chosen = [summary.hash for summary in outcome.chosen(plan.retrain_top)]
    models = plan.models(chosen, outcome.random)
    retrained, not_retrained = gather_retrainings(folder.retrain_dir, models, plan.retraining_seeds)
    return dataclasses.replace(
        outcome,
        checked=tuple(checked),
        not_checked=tuple(not_checked),
        retrained=tuple(retrained),
        not_retrained=tuple(not_retrained),
    )


def _costs(plan: Plan, searched: Iterable[SearchTrial]) -> dict[str, dict[str, int]]:
    if len(plan.objectives) == 1:
        return {}
    genotypes = (*(trial.genotype for trial in searched), *plan.random_genotypes())
    found = {g.canonical_hash: cost(g, plan.retrain) for g in genotypes}
    return found | {VIT: vit_cost(plan.retrain)}


def gather_searches(
    trials_dir: Path, indices: Iterable[int], seeds: range
) -> tuple[list[SearchTrial], list[StoppedTrial], list[Failure]]:
    """The searches of some configurations on some seeds: those that finished, those that a
    scheduler ended early, and the others."""
    finished, stopped, left = [], [], []
    for index in indices:
        for seed in seeds:
            folder = trials_dir / search_dirname(index, seed)
            if trial := load_search_trial(trials_dir, index, seed):
                finished.append(trial)
            elif stop := read_stop(folder):
                stopped.append(stop)
            else:
                left.append(read_failure(folder))
    return finished, stopped, left


def gather_retrainings(
    trials_dir: Path, models: Sequence[str], seeds: range
) -> tuple[list[RetrainTrial], list[Failure]]:
    """The retrainings of some models, finished or not."""
    finished, left = [], []
    for model in models:
        for seed in seeds:
            if trial := load_retrain_trial(trials_dir, model, seed):
                finished.append(trial)
            else:
                left.append(read_failure(trials_dir / retrain_dirname(model, seed)))
    return finished, left


def wall_of(runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds of all runs together, and the last one's trials at a time."""
    runs = [run for run in runs if "wall_seconds" in run]
    if not runs:
        return {}
    parts = (*PHASES, "other", "total")
    sums = {part: sum(run["wall_seconds"].get(part, 0.0) for run in runs) for part in parts}
    return {**sums, "concurrent": runs[-1]["concurrent_trials"]}
