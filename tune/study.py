"""A sweep's results as an Optuna study, for Optuna's own importances and dashboard."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from tune.aggregate import ConfigSummary

__all__ = ["JOURNAL_FILE", "make_study", "write_study"]

JOURNAL_FILE = "optuna.journal"
"""In the sweep's folder: `optuna-dashboard RUN_DIR/optuna.journal` opens it."""


def make_study(
    configs: Sequence[ConfigSummary],
    metric: str,
    *,
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
        name: of the study.
        storage: where it is kept; None for memory.
    """
    columns = {
        setting: [config.settings[setting] for config in configs]
        for setting in (configs[0].settings if configs else ())
        if all(setting in config.settings for config in configs)
    }
    prepared = {key: _prepare(values) for key, values in columns.items() if len(set(values)) > 1}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    for i in sorted(range(len(configs)), key=lambda i: configs[i].config_index):
        config = configs[i]
        study.add_trial(
            optuna.trial.create_trial(
                params={key: values[i] for key, (values, _) in prepared.items()},
                distributions={key: domain for key, (_, domain) in prepared.items()},
                value=getattr(config, metric).mean,
                user_attrs={
                    "configuration": config.config_index,
                    "genotypes": list(config.genotypes),
                    "seeds": getattr(config, metric).count,
                    "supernet_accuracy": config.supernet_accuracy.mean,
                    "discretised_accuracy": config.discretised_accuracy.mean,
                },
            )
        )
    return study


def write_study(path: Path, configs: Sequence[ConfigSummary], metric: str, *, name: str) -> None:
    """The study as a journal file, anew each time: the trials' folders are the record, and a sweep
    that is continued proposes from them."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    make_study(configs, metric, name=name, storage=JournalStorage(JournalFileBackend(str(fresh))))
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
