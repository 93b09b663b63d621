"""Which outer settings the search score depends on: Optuna's importances over a sweep's results."""

from collections.abc import Sequence

from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from tune.aggregate import ConfigSummary
from tune.study import make_study

__all__ = ["LEAST_CONFIGS", "importances"]

LEAST_CONFIGS = 6
"""With fewer configurations a share would be noise alone."""


def importances(configs: Sequence[ConfigSummary], metric: str) -> dict[str, float]:
    """Share of the score's variance that each setting explains (fANOVA), largest first; they sum
    to 1.

    See `make_study` for what counts as a choice and what as a number.

    Args:
        configs: with their mean score over seeds.
        metric: the score.

    Returns:
        Empty with under `LEAST_CONFIGS` configurations, or if all scores are equal.
    """
    scores = [getattr(config, metric).mean for config in configs]
    if len(configs) < LEAST_CONFIGS or len(set(scores)) < 2:
        return {}
    study = make_study(configs, metric)
    if not study.trials[0].params:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))
