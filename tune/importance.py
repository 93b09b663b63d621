"""Which outer settings the search score depends on: Optuna's importances over a sweep's results."""

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from tune.aggregate import ConfigSummary

__all__ = ["LEAST_CONFIGS", "importances"]

LEAST_CONFIGS = 6
"""With fewer configurations a share would be noise alone."""


def importances(configs: Sequence[ConfigSummary], metric: str) -> dict[str, float]:
    """Share of the score's variance that each setting explains (fANOVA), largest first; they sum
    to 1.

    Settings with one value in all configurations are left out. Values of at most two kinds are
    choices; positive values over more than a decade count on a logarithmic scale, a 0 among
    them (plain DARTS) as their smallest.

    Args:
        configs: with their mean score over seeds.
        metric: the score.

    Returns:
        Empty with under `LEAST_CONFIGS` configurations, or if all scores are equal.
    """
    scores = [getattr(config, metric).mean for config in configs]
    if len(configs) < LEAST_CONFIGS or len(set(scores)) < 2:
        return {}
    columns = {
        name: [config.settings[name] for config in configs]
        for name in configs[0].settings
        if all(name in config.settings for config in configs)
    }
    prepared = {name: _prepare(values) for name, values in columns.items() if len(set(values)) > 1}
    if not prepared:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for i, score in enumerate(scores):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: values[i] for name, (values, _) in prepared.items()},
                distributions={name: domain for name, (_, domain) in prepared.items()},
                value=score,
            )
        )
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
