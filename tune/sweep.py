"""The search phase: every proposed configuration on every seed."""

import logging
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.cluster import Demand
from tune.objectives import ACCURACY
from tune.own_callbacks import callbacks_of
from tune.progress import Progress
from tune.report.gather import gather_searches
from tune.searcher import CONFIG_INDEX, make_searcher
from tune.space import first_draws
from tune.trainable import SearchSetup, failure_recorder, make_trainable, stop_recorder

__all__ = ["asha", "fit", "run_search_trials"]

DRIVER_RESTARTS = 3


def run_search_trials(
    search: SearchConfig,
    *,
    fixed: frozenset[str],
    space: dict[str, Any],
    num_samples: int,
    seeds: range,
    metric: str,
    objectives: tuple[str, ...] = (ACCURACY,),
    costs_at: RetrainConfig | None = None,
    lag: int,
    trials_dir: Path,
    ray_dir: Path,
    demand: Demand,
    scheduler: TrialScheduler | None = None,
    then: str = "",
) -> None:
    """Run what `gather_searches` does not find finished. Needs a connected Ray.

    Finished trials are proposed again, in the same order, and pass their score to Optuna at once;
    unfinished ones continue from their last epoch.

    Args:
        space: Tune domains by name, see `tune.space`.
        objectives: accuracy, by its `metric`, and costs to minimise with it.
        costs_at: where the costs are counted; needed with costs.
        scheduler: may stop trials early, see `asha`.
    """
    setup = SearchSetup(
        search=search,
        trials_dir=trials_dir,
        ray_dir=ray_dir,
        demand=demand,
        scheduled=scheduler is not None,
        costs_at=costs_at,
    )
    searcher = make_searcher(
        space,
        metric=metric,
        costs=objectives[1:],
        num_samples=num_samples,
        num_seeds=len(seeds),
        seed=search.seed,
        lag=lag,
        told=trials_dir / "told.json",
        first=first_draws(search, space, fixed=fixed),
    )
    finished, stopped, _ = gather_searches(trials_dir, range(num_samples), seeds)
    progress = Progress(
        "search",
        total=num_samples * len(seeds),
        concurrent=demand.concurrent,
        done_before=frozenset(trial.name for trial in (*finished, *stopped)),
        name=lambda sampled: setup.job(sampled).name,
        failed=failure_recorder(setup),
        stopped=None if scheduler is None else stop_recorder(setup),
        metric=metric,
        then=then,
    )
    fit(
        make_trainable(setup),
        name="search",
        ray_dir=ray_dir,
        demand=demand,
        progress=progress,
        searcher=searcher,
        num_trials=num_samples * len(seeds),
        param_space={},
        scheduler=scheduler,
    )


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
        return self.CONTINUE if done or trial.config[CONFIG_INDEX] < self._spared else decision


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


def fit(
    trainable: Any,
    *,
    name: str,
    ray_dir: Path,
    demand: Demand,
    progress: Callback,
    param_space: dict[str, Any],
    num_trials: int = 1,
    searcher: Searcher | None = None,
    scheduler: TrialScheduler | None = None,
) -> None:
    """One Tune experiment to its end, or to Ctrl-C: `Tuner.fit` returns normally from that, so
    what has finished must be looked up in the trials' folders.

    Args:
        progress: is told of each trial.
        num_trials: with a searcher; a grid in `param_space` counts itself.
    """
    # Of a failed trial its folder, or `progress`, has the reason; Tune's logs have it at length.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=num_trials,
            max_concurrent_trials=demand.concurrent,
            # A driver that is stopped in the middle cannot take the next trial.
            reuse_actors=scheduler is None,
            scheduler=scheduler,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(ray_dir),
            callbacks=[progress, *callbacks_of(name)],
            failure_config=tune.FailureConfig(max_failures=DRIVER_RESTARTS),
            verbose=0,
        ),
    ).fit()
