"""A sweep's results as an Optuna study, for Optuna's own importances and dashboard."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tune.report.outcome import Outcome
from tune.trials import config_index

__all__ = ["JOURNAL_FILE", "LEAST_CONFIGS", "importances", "make_study", "write_study"]

JOURNAL_FILE = "optuna.journal"
"""In the sweep's folder: `optuna-dashboard RUN_DIR/optuna.journal` opens it."""

LEAST_CONFIGS = 6
"""With fewer configurations an importance would be noise alone."""


def make_study(outcome: Outcome, storage: BaseStorage | None = None) -> optuna.Study:
    """A study with one trial per configuration, whose values are the mean score over its seeds and
    what is minimised beside it. A search that the scheduler ended early is a pruned trial.

    Settings with one value in all configurations are left out. Values of at most two kinds are
    choices; positive values over more than a decade count on a logarithmic scale, a 0 among
    them (plain DARTS) as their smallest.

    Args:
        outcome: of the sweep.
        storage: where it is kept; None for memory.
    """
    stopped = {config_index(stop.name): stop for stop in outcome.stopped}
    scored = {config.config_index: config for config in outcome.configs}
    drawn = {index: {**stop.settings} for index, stop in stopped.items()}
    drawn |= {index: {**config.settings} for index, config in scored.items()}
    order = sorted(drawn)
    columns = {
        setting: [drawn[index][setting] for index in order]
        for setting in (drawn[order[0]] if order else ())
        if setting != "seed" and all(setting in settings for settings in drawn.values())
    }
    prepared = {key: _prepare(values) for key, values in columns.items() if len(set(values)) > 1}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    costs = outcome.plan.objectives[1:] if outcome.costs else ()
    study = optuna.create_study(
        study_name=outcome.name,
        storage=storage,
        directions=["maximize", *["minimize"] * len(costs)],
    )
    for place, index in enumerate(order):
        about: dict[str, Any] = {"configuration": index}
        result: dict[str, Any]
        if index in scored:
            config, score = scored[index], scored[index].score(outcome.metric)
            about |= {"genotypes": config.genotypes, "seeds": score.count}
            for name in ("supernet_accuracy", "discretised_accuracy"):
                about[name] = config.score(name).mean
            # With several objectives each configuration has one seed, and so one encoder.
            found = outcome.costs.get(config.genotypes[-1], {})
            result = {"values": [score.mean, *(found[name] for name in costs)]}
        else:
            stop = stopped[index]
            result = {"state": TrialState.PRUNED, "intermediate_values": {stop.epochs: stop.score}}
        study.add_trial(
            optuna.trial.create_trial(
                params={key: values[place] for key, (values, _) in prepared.items()},
                distributions={key: domain for key, (_, domain) in prepared.items()},
                user_attrs=about,
                **result,
            )
        )
    return study


def write_study(path: Path, outcome: Outcome) -> None:
    """The study as a journal file, anew each time: the trials' folders are the record, and a sweep
    that is continued proposes from them. See `make_study`."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    make_study(outcome, JournalStorage(JournalFileBackend(str(fresh))))
    fresh.replace(path)


def importances(outcome: Outcome) -> dict[str, float]:
    """Share of the score's variance that each setting explains (fANOVA), largest first; they sum
    to 1.

    See `make_study` for what counts as a choice and what as a number.

    Returns:
        Empty with under `LEAST_CONFIGS` configurations, or if all scores are equal.
    """
    scores = [config.score(outcome.metric).mean for config in outcome.configs]
    if len(scores) < LEAST_CONFIGS or len(set(scores)) < 2:
        return {}
    study = make_study(dataclasses.replace(outcome, stopped=(), costs={}))
    if not study.trials[0].params:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))


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
