"""What the driver of a sweep costs per trial: searcher, study and Tune, with trials that compute
nothing.

    python benchmarks/sweep_cost.py --trials 1000 --json docs/results/sweep_cost.json
"""

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from tune.cluster import connect, prepare

BLOCK = 100
"""Trials of which a rate is given."""


def measure(trials: int) -> dict[str, Any]:
    """Seconds per trial in blocks of `BLOCK`, and MiB that the driver gains per trial."""
    from ray import tune
    from ray.tune import Callback

    from tune.searcher import Proposer

    class Times(Callback):
        """When each trial ended."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_trial_complete(self, *args: Any, **info: Any) -> None:
            self.ends.append(time.monotonic())

    def trial(sampled: dict[str, Any]) -> None:
        tune.report({"score": -((sampled["x"] - 0.3) ** 2), "finished": 1})

    times = Times()
    with tempfile.TemporaryDirectory() as folder, connect(None) as cluster:
        concurrent = int(cluster.cpus)
        searcher = Proposer(
            {"x": tune.uniform(0.0, 1.0), "y": tune.loguniform(0.1, 10.0)},
            metric="score",
            num_samples=trials,
            seeds=(0,),
            sampler_seed=0,
            lag=concurrent,
            study_file=Path(folder) / "study",
        )
        before, started = _memory(), time.monotonic()
        tune.Tuner(
            trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=trials,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trivial", storage_path=folder, callbacks=[times], verbose=0
            ),
        ).fit()
        gained = _memory() - before
    marks = [started, *times.ends[BLOCK - 1 :: BLOCK]]
    return {
        "trials": len(times.ends),
        "concurrent": concurrent,
        "seconds_per_trial": [(b - a) / BLOCK for a, b in itertools.pairwise(marks)],
        "mib_per_trial": gained / len(times.ends),
    }


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    prepare(None)
    from dasvit.run.environment import environment

    found = {"environment": environment(), **measure(args.trials)}
    text = json.dumps(found, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
