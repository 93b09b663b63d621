"""The search phase: every proposed configuration on every seed."""

import logging
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.search import Searcher

from dasvit.config import SearchConfig
from tune.cluster import Demand
from tune.gather import gather_search
from tune.progress import Progress
from tune.searcher import make_searcher
from tune.space import first_draws
from tune.trainable import SearchSetup, failure_recorder, make_trainable

__all__ = ["fit", "run_search_trials"]

DRIVER_RESTARTS = 3


def run_search_trials(
    search: SearchConfig,
    *,
    fixed: frozenset[str],
    space: dict[str, Any],
    num_samples: int,
    seeds: range,
    metric: str,
    lag: int,
    trials_dir: Path,
    ray_dir: Path,
    demand: Demand,
    then: str = "",
) -> None:
    """Run what `gather_search` does not find finished. Needs a connected Ray.

    Finished trials are proposed again, in the same order, and pass their score to Optuna at once;
    unfinished ones continue from their last epoch.

    Args:
        space: Tune domains by name, see `tune.space`.
    """
    setup = SearchSetup(search=search, trials_dir=trials_dir, ray_dir=ray_dir, demand=demand)
    searcher = make_searcher(
        space,
        metric=metric,
        num_samples=num_samples,
        num_seeds=len(seeds),
        seed=search.seed,
        lag=lag,
        told=trials_dir / "told.json",
        first=first_draws(search, space, fixed=fixed),
    )
    finished, _ = gather_search(trials_dir, num_samples=num_samples, seeds=seeds)
    progress = Progress(
        "search",
        total=num_samples * len(seeds),
        concurrent=demand.concurrent,
        done_before=frozenset(trial.name for trial in finished),
        name=lambda sampled: setup.job(sampled).name,
        failed=failure_recorder(setup),
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
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(ray_dir),
            callbacks=[progress],
            failure_config=tune.FailureConfig(max_failures=DRIVER_RESTARTS),
            verbose=0,
        ),
    ).fit()
