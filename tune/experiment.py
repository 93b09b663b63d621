"""One Tune experiment: the trials of a phase, to their end or to Ctrl-C."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune.searcher import CONFIGURATION
from tune.trial import RetrainSetup, SearchSetup, make_trainable, wait_for_files
from tune.trial_folder import RESULT_FILE

__all__ = ["asha", "fit"]

RESTARTS = 3
"""Of a trial, after what may pass: its process was killed, its node is gone."""


def fit(
    setup: SearchSetup | RetrainSetup,
    ray_dir: Path,
    *,
    callbacks: Sequence[Callback],
    param_space: dict[str, Any],
    num_trials: int = 1,
    searcher: Searcher | None = None,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run the trials. `Tuner.fit` returns normally from Ctrl-C, so what has finished must be looked
    up in the trials' folders.

    Args:
        ray_dir: for Ray's own record of the experiment.
        num_trials: with a searcher; a grid in `param_space` counts itself.
    """
    # Of a failed trial its folder has the reason; Tune's logs have it at length.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    results = tune.Tuner(
        make_trainable(setup),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=num_trials,
            max_concurrent_trials=setup.demand.concurrent,
            # A process whose trial is stopped in the middle cannot take the next one.
            reuse_actors=scheduler is None,
            scheduler=scheduler,
            trial_dirname_creator=lambda trial: setup.job(trial.config).folder.name,
        ),
        run_config=tune.RunConfig(
            name=ray_dir.name,
            storage_path=str(ray_dir.parent),
            callbacks=[*callbacks, CSVLoggerCallback(), JsonLoggerCallback()],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    ).fit()
    for result in results:
        if (result.metrics or {}).get("finished"):
            wait_for_files([setup.job(result.config or {}).folder / RESULT_FILE])


class _Asha(AsyncHyperBandScheduler):
    """ASHA that lets some searches go on, and measures others by them all the same: one that has
    had all its epochs and is about to derive (a rung may lie there), and the configurations before
    a number, a sweep's own settings and its baseline, which are there to be compared with."""

    def __init__(self, spared: int, max_t: int, **settings: Any) -> None:
        super().__init__(max_t=max_t, stop_last_trials=False, **settings)
        self._spared, self._last = spared, max_t

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        done = result.get("epoch", 0) >= self._last
        return self.CONTINUE if done or trial.config[CONFIGURATION] < self._spared else decision


def asha(
    *, total_epochs: int, grace_epochs: int, reduction_factor: int, spared: int = 0
) -> TrialScheduler:
    """ASHA by the supernet's validation accuracy at the same epoch.

    All searches of a sweep have the same stages, so that an epoch means the same network size.

    Args:
        spared: configurations, from the first on, that are never stopped.
    """
    return _Asha(
        spared,
        time_attr="epoch",
        metric="supernet_accuracy",
        mode="max",
        max_t=total_epochs,
        grace_period=grace_epochs,
        reduction_factor=reduction_factor,
    )
