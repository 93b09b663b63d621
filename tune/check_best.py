"""The check of the best: their configurations searched again on fresh seeds.

The best of many noisy scores is optimistic. Scores of seeds that had no part in the choice are not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from dasvit.search.config import SearchConfig
from tune.cluster import Demand
from tune.job import Job
from tune.progress import Progress
from tune.report.aggregate import ConfigSummary
from tune.report.gather import gather_searches
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX
from tune.sweep import fit
from tune.trainable import SearchSetup, failure_recorder, make_trainable

__all__ = ["CheckSetup", "draws", "run_check_trials"]


class CheckSetup(SearchSetup):
    """Search trials whose draw comes whole, under "trial"."""

    def job(self, sampled: dict[str, Any]) -> Job:
        return super().job(sampled["trial"])


def draws(configs: Sequence[ConfigSummary], seeds: range, first_seed: int) -> list[dict[str, Any]]:
    """Each configuration on each seed, in the form of a proposal; `first_seed` is the sweep's."""
    return [
        {**config.settings, CONFIG_INDEX: config.config_index, TRIAL_INDEX: seed - first_seed}
        for config in configs
        for seed in seeds
    ]


def run_check_trials(
    search: SearchConfig,
    *,
    configs: Sequence[ConfigSummary],
    seeds: range,
    metric: str,
    trials_dir: Path,
    ray_dir: Path,
    demand: Demand,
) -> None:
    """Run what `gather_searches` does not find finished. Needs a connected Ray.

    Args:
        configs: to search again, with the settings that they had.
        seeds: that the sweep's search has not used.
    """
    setup = CheckSetup(search=search, trials_dir=trials_dir, ray_dir=ray_dir, demand=demand)
    trials = draws(configs, seeds, search.seed)
    indices = [config.config_index for config in configs]
    finished, _, _ = gather_searches(trials_dir, indices, seeds)
    progress = Progress(
        "check",
        total=len(trials),
        concurrent=demand.concurrent,
        done_before=frozenset(trial.name for trial in finished),
        name=lambda sampled: setup.job(sampled).name,
        failed=failure_recorder(setup),
        metric=metric,
    )
    fit(
        make_trainable(setup),
        name="check",
        ray_dir=ray_dir,
        demand=demand,
        progress=progress,
        param_space={"trial": tune.grid_search(trials)},
    )
