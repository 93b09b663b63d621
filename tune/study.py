"""A sweep's results as an Optuna study, for Optuna's own importances and dashboard."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune.aggregate import ConfigSummary
from tune.trials import StoppedTrial, config_index

__all__ = ["JOURNAL_FILE", "make_study", "write_study"]

JOURNAL_FILE = "optuna.journal"
"""In the sweep's folder: `optuna-dashboard RUN_DIR/optuna.journal` opens it."""


def make_study(
    configs: Sequence[ConfigSummary],
    metric: str,
    *,
    stopped: Sequence[StoppedTrial] = (),
    costs: Mapping[int, Sequence[float]] | None = None,
    name: str | None = None,
    storage: BaseStorage | None = None,
) -> optuna.Study:
    """A study with a trial a configuration, whose value is the mean score over its seeds.

    Settings with one value in all configurations are left out. Values of at most two kinds are
    choices; positive values over more than a decade count on a logarithmic scale, a 0 among
    them (plain DARTS) as their smallest.

    Args:
        configs: with their mean score over seeds.
        metric: the score.
        stopped: searches that the scheduler ended early; pruned trials, with their last score.
        costs: what is minimised beside the score, by configuration; none in most sweeps.
        name: of the study.
        storage: where it is kept; None for memory.
    """
    drawn = {config.config_index: config.settings for config in configs}
    drawn |= {config_index(stop.name): _without_seed(stop.settings) for stop in stopped}
    scored = {
        config.config_index: _scored(config, metric, (costs or {}).get(config.config_index, ()))
        for config in configs
    }
    pruned = {config_index(stop.name): _pruned(stop) for stop in stopped}
    order = sorted(drawn)
    columns = {
        setting: [drawn[index][setting] for index in order]
        for setting in (drawn[order[0]] if order else ())
        if all(setting in settings for settings in drawn.values())
    }
    prepared = {key: _prepare(values) for key, values in columns.items() if len(set(values)) > 1}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    count = len(next(iter(costs.values()))) if costs else 0
    study = optuna.create_study(
        study_name=name, storage=storage, directions=["maximize", *["minimize"] * count]
    )
    for place, index in enumerate(order):
        study.add_trial(
            optuna.trial.create_trial(
                params={key: values[place] for key, (values, _) in prepared.items()},
                distributions={key: domain for key, (_, domain) in prepared.items()},
                **(scored | pruned)[index],
            )
        )
    return study


def _scored(config: ConfigSummary, metric: str, costs: Sequence[float]) -> dict[str, Any]:
    attributes = {
        "configuration": config.config_index,
        "genotypes": list(config.genotypes),
        "seeds": getattr(config, metric).count,
        "supernet_accuracy": config.supernet_accuracy.mean,
        "discretised_accuracy": config.discretised_accuracy.mean,
    }
    return {"values": [getattr(config, metric).mean, *costs], "user_attrs": attributes}


def _pruned(stop: StoppedTrial) -> dict[str, Any]:
    return {
        "state": optuna.trial.TrialState.PRUNED,
        "intermediate_values": {stop.epochs: stop.score},
        "user_attrs": {"configuration": config_index(stop.name)},
    }


def _without_seed(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "seed"}


def write_study(
    path: Path,
    configs: Sequence[ConfigSummary],
    metric: str,
    *,
    name: str,
    stopped: Sequence[StoppedTrial] = (),
    costs: Mapping[int, Sequence[float]] | None = None,
) -> None:
    """The study as a journal file, anew each time: the trials' folders are the record, and a sweep
    that is continued proposes from them. See `make_study`."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    storage = JournalStorage(JournalFileBackend(str(fresh)))
    make_study(configs, metric, stopped=stopped, costs=costs, name=name, storage=storage)
    fresh.replace(path)


def _prepare(values: list[Any]) -> tuple[list[Any], BaseDistribution]:
    kinds = sorted(set(values))
    if len(kinds) == 2 or not all(isinstance(value, int | float) for value in values):
        return values, CategoricalDistribution(kinds)
    positive = [value for value in values if value > 0]
    low, high = (min(positive), max(positive)) if positive else (0.0, 0.0)
    if min(values) >= 0 and low > 0 and high / low > 10:
        raised = [max(float(value), low) for value in values]
        return raised, FloatDistribution(low, math.nextafter(high, math.inf), log=True)
    return [float(value) for value in values], FloatDistribution(min(values), max(values))
