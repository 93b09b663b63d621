"""A sweep's outcome, from the trials' folders. No Ray."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from tune.aggregate import ConfigSummary
from tune.folder import ResultFolder
from tune.objectives import cost, vit_cost
from tune.outcome import VIT, Outcome
from tune.plan import Plan
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

__all__ = ["gather", "gather_checks", "gather_retrain", "gather_search", "gather_stopped"]


def gather(plan: Plan, folder: ResultFolder, *, name: str, wall: dict[str, float]) -> Outcome:
    """The state of a sweep.

    Args:
        name: of the sweep.
        wall: see `Outcome`.

    Raises:
        ValueError: a malformed result file.
    """
    searched, not_searched = gather_search(
        folder.search_dir, num_samples=plan.num_configs, seeds=plan.search_seeds
    )
    outcome = Outcome(
        name=name,
        dataset=plan.search.data.dataset,
        retrain_dataset=plan.retrain.data.dataset,
        metric=plan.metric,
        operations=plan.search.space.operations,
        method=plan.search.method,
        edges_per_node=plan.search.space.edges_per_node,
        seeds=plan.seeds,
        check_seeds=plan.check_seeds,
        retrain_seeds=plan.retrain_seeds,
        search=tuple(searched),
        not_searched=tuple(not_searched),
        stopped=tuple(
            gather_stopped(folder.search_dir, num_samples=plan.num_configs, seeds=plan.search_seeds)
        ),
        objectives=plan.objectives,
        costs=_costs(plan, searched),
        random=plan.random_genotypes(),
        wall=wall,
    )
    checked, not_checked = gather_checks(
        folder.search_dir, configs=outcome.best_configs(plan.retrain_top), seeds=plan.fresh_seeds
    )
    retrained, not_retrained = gather_retrain(
        folder.retrain_dir,
        models=plan.models(outcome.chosen(plan.retrain_top), outcome.random),
        seeds=plan.retraining_seeds,
    )
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


def gather_search(
    trials_dir: Path, *, num_samples: int, seeds: range
) -> tuple[list[SearchTrial], list[Failure]]:
    """All search trials of a sweep, finished or not, from their folders; those that a scheduler
    ended early are neither."""
    return _gather_searches(trials_dir, range(num_samples), seeds)


def gather_stopped(trials_dir: Path, *, num_samples: int, seeds: range) -> list[StoppedTrial]:
    """The search trials that a scheduler ended early."""
    folders = [trials_dir / search_dirname(i, seed) for i in range(num_samples) for seed in seeds]
    unfinished = [folder for folder in folders if not (folder / "result.json").exists()]
    return [stop for folder in unfinished if (stop := read_stop(folder)) is not None]


def gather_checks(
    trials_dir: Path, *, configs: Sequence[ConfigSummary], seeds: range
) -> tuple[list[SearchTrial], list[Failure]]:
    """The searches of the best configurations on fresh seeds, finished or not."""
    return _gather_searches(trials_dir, [config.config_index for config in configs], seeds)


def _gather_searches(
    trials_dir: Path, indices: Iterable[int], seeds: range
) -> tuple[list[SearchTrial], list[Failure]]:
    finished, failed = [], []
    for index in indices:
        for seed in seeds:
            trial = load_search_trial(trials_dir, index, seed)
            if trial is not None:
                finished.append(trial)
            elif read_stop(folder := trials_dir / search_dirname(index, seed)) is None:
                failed.append(read_failure(folder))
    return finished, failed


def gather_retrain(
    trials_dir: Path, *, models: Sequence[str], seeds: range
) -> tuple[list[RetrainTrial], list[Failure]]:
    """All retrainings, finished or not, from their folders."""
    finished, failed = [], []
    for model in models:
        for seed in seeds:
            trial = load_retrain_trial(trials_dir, model, seed)
            if trial is not None:
                finished.append(trial)
            else:
                failed.append(read_failure(trials_dir / retrain_dirname(model, seed)))
    return finished, failed
