"""What Ray costs a sweep: the parts of a trial, the head's throughput, slots against wall time.

    python benchmarks/sweep_cost.py trivial --trials 1000 --out trivial.json
    python benchmarks/sweep_cost.py slots --out slots.json
    python benchmarks/sweep_cost.py parts --run runs/slots2 --out parts.json

Each writes JSON with machine, versions and commit. docs/cluster.md states the results.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ray import tune  # noqa: E402
from ray.tune import Callback  # noqa: E402

from dasvit.commands.arguments import parse  # noqa: E402
from dasvit.presets import get_preset  # noqa: E402
from dasvit.run.environment import environment  # noqa: E402
from dasvit.run.files import write_atomic  # noqa: E402
from tune.cluster import Demand, connect  # noqa: E402
from tune.searcher import CONFIG_INDEX, result_lag  # noqa: E402
from tune.space import outer_space  # noqa: E402
from tune.sweep import fit, make_searcher  # noqa: E402
from tune.trainable import DRIVER_RESOURCES  # noqa: E402

PARTS = ("start", "import", "seconds", "other", "end")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What each trial of a finished sweep spent its time on."""

    run: Path
    """The sweep's folder."""
    out: Path

    def measure(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for phase in ("search", "retrain"):
            times = [
                values["parts"] | {"seconds": values["seconds"]}
                for path in sorted((self.run / phase).glob("*/times.json"))
                if "parts" in (values := json.loads(path.read_text()))
            ]
            if times:
                medians = {part: statistics.median(t[part] for t in times) for part in PARTS}
                found[phase] = {"trials": len(times), "medians": medians}
        if not found:
            raise SystemExit(f"error: {self.run} has no trial with times")
        return found


@dataclass(frozen=True, kw_only=True)
class Trivial:
    """Trials that return at once: what remains is Tune, the searcher, and starting nothing."""

    trials: int = 1000
    concurrent: int = 2
    seeds: int = 2
    out: Path = Path("trivial.json")

    def measure(self) -> dict[str, Any]:
        search = get_preset("digits").search
        space = outer_space(search)
        watch = Watch(every=max(1, self.trials // 20))
        need = Demand(cpus=1, gpus=0.0, concurrent=self.concurrent)
        metric = "discretised_accuracy"
        with tempfile.TemporaryDirectory() as folder, connect(None):
            searcher = make_searcher(
                space,
                metric=metric,
                num_samples=self.trials // self.seeds,
                num_seeds=self.seeds,
                seed=0,
                lag=result_lag(self.concurrent, self.seeds),
                told=Path(folder) / "told.json",
            )
            watch.started = time.monotonic()
            fit(
                tune.with_resources(
                    tune.with_parameters(_trivial, metric=metric), DRIVER_RESOURCES
                ),
                name="trivial",
                ray_dir=Path(folder),
                demand=need,
                progress=watch,
                param_space={},
                num_trials=self.trials,
                searcher=searcher,
            )
        return {"concurrent": self.concurrent, "seeds": self.seeds, "rows": watch.rows}


def _trivial(sampled: dict[str, Any], metric: str) -> None:
    tune.report({metric: (sampled[CONFIG_INDEX] * 37 % 101) / 101, "finished": 1})


class Watch(Callback):
    """Every so many finished trials: how many, seconds since the start, memory of this process."""

    def __init__(self, every: int) -> None:
        self.every, self.started, self.done = every, 0.0, 0
        self.rows: list[dict[str, float]] = []

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.done += 1
        if self.done % self.every == 0:
            row = {
                "trials": self.done,
                "seconds": time.monotonic() - self.started,
                "memory_mib": _resident_mib(),
            }
            self.rows.append(row)
            print(
                "{trials} trials, {seconds:.0f} s, {memory_mib:.0f} MiB".format(**row), flush=True
            )


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The same sweep with one trial at a time, then with two, ..."""

    counts: tuple[int, ...] = (1, 2)
    num_samples: int = 3
    """Configurations on two seeds each, in first order."""
    runs: Path = Path("runs")
    """Where the sweeps go, as slots1, slots2, ...; `parts` reads them."""
    out: Path = Path("slots.json")

    def measure(self) -> dict[str, Any]:
        return {str(count): self._sweep(self.runs.resolve(), count) for count in self.counts}

    def _sweep(self, folder: Path, count: int) -> dict[str, float]:
        name = f"slots{count}"
        subprocess.run(
            [
                *(
                    sys.executable,
                    "tune/run_search.py",
                    "--storage-path",
                    str(folder),
                    "--name",
                    name,
                ),
                *("--num-samples", str(self.num_samples), "--xi", "0", "--retrain-top", "1"),
                *("--max-concurrent-trials", str(count)),
            ],
            cwd=ROOT,
            check=True,
        )
        record = json.loads((folder / name / "sweep.json").read_text())
        return record["runs"][0]["wall_seconds"]


def main() -> None:
    kinds = {"parts": Parts, "trivial": Trivial, "slots": Slots}
    name, *words = sys.argv[1:] or [""]
    if name not in kinds:
        raise SystemExit(f"error: the first word must be {', '.join(kinds)}, but got {name!r}")
    args = parse(kinds[name], words)
    result = {"environment": environment(), **args.measure()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps(result, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
