"""The retraining phase: the best genotypes and the baseline, each on every seed."""

from collections.abc import Sequence
from pathlib import Path

from ray import tune

from dasvit.training.config import RetrainConfig
from tune.cluster import Demand
from tune.progress import Progress
from tune.report.gather import gather_retrainings
from tune.sweep import fit
from tune.trainable import RetrainSetup, failure_recorder, make_trainable

__all__ = ["run_retrain_trials"]


def run_retrain_trials(
    retrain: RetrainConfig,
    *,
    models: Sequence[str],
    seeds: range,
    genotypes_dir: Path,
    trials_dir: Path,
    ray_dir: Path,
    demand: Demand,
) -> None:
    """Run what `gather_retrainings` does not find finished. Needs a connected Ray.

    Args:
        models: canonical hashes, each with a file in `genotypes_dir`, and "vit".
        seeds: of the retrainings.
    """
    setup = RetrainSetup(
        retrain=retrain,
        genotypes_dir=genotypes_dir,
        trials_dir=trials_dir,
        ray_dir=ray_dir,
        demand=demand,
    )
    finished, _ = gather_retrainings(trials_dir, models, seeds)
    progress = Progress(
        "retraining",
        total=len(models) * len(seeds),
        concurrent=demand.concurrent,
        done_before=frozenset(trial.name for trial in finished),
        name=lambda sampled: setup.job(sampled).name,
        failed=failure_recorder(setup),
    )
    fit(
        make_trainable(setup),
        name="retrain",
        ray_dir=ray_dir,
        demand=demand,
        progress=progress,
        param_space={
            "model": tune.grid_search(list(models)),
            "seed": tune.grid_search(list(seeds)),
        },
    )
