"""Searches that a scheduler stops early."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.sweep_process import SweepProcess

from tune.experiment import asha
from tune.searcher import CONFIGURATION
from tune.trial_folder import STOP_FILE


def told(scheduler: Any, configuration: int, scores: list[float]) -> list[str]:
    """What the scheduler answers to the epochs of a trial."""
    trial = SimpleNamespace(trial_id=str(configuration), config={CONFIGURATION: configuration})
    scheduler.on_trial_add(None, trial)
    return [
        scheduler.on_trial_result(
            None,
            trial,
            {"epoch": epoch, "supernet_accuracy": score, "training_iteration": epoch},
        )
        for epoch, score in enumerate(scores, start=1)
    ]


def test_asha_stops_the_one_that_lags() -> None:
    """At its first rung: the later, worse of two is ended, unless it is one of the first, with
    which the sweep is compared."""
    scheduler = asha(total_epochs=6, grace_epochs=1, reduction_factor=2, spared=2)
    assert told(scheduler, 3, [0.6] * 6) == ["CONTINUE"] * 6
    assert told(scheduler, 2, [0.3]) == ["STOP"]
    assert told(scheduler, 1, [0.2]) == ["CONTINUE"]


def test_asha_ends_nobody_who_has_had_all_epochs() -> None:
    """With 9 epochs from 1 by 3 there is a rung at the last."""
    scheduler = asha(total_epochs=9, grace_epochs=1, reduction_factor=3)
    for number in range(4):
        scores = [0.9] * 8 + [0.9 - 0.1 * number]
        assert told(scheduler, number, scores) == ["CONTINUE"] * 9


SWEEP = shlex.split(
    "--scheduler asha --metric supernet_accuracy --grace-epochs 1 --reduction-factor 2 "
    "--num-samples 4 --seeds 1 --xi 0 --name asha --dim 12 --stage-layers 1 1 1 --retrain-top 1 "
    "--retrain.epochs 2 --retrain.warmup-epochs 1 --retrain.dim 12 --retrain.depth 2 "
    "--max-concurrent-trials 1"
)


def stops(root: Path) -> dict[str, bytes]:
    """What the trials' folders hold of the searches that were stopped."""
    return {path.parent.name: path.read_bytes() for path in root.glob(f"search/*/{STOP_FILE}")}


def running(root: Path) -> str:
    """A search that has written down an epoch and is neither finished nor stopped."""
    ends = ("result.json", STOP_FILE)
    traces = root.glob("search/*/alpha.jsonl")
    names = (t.parent.name for t in traces if not any((t.parent / e).exists() for e in ends))
    return next(names, "")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("one_ray_at_a_time")
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_a_sweep_with_asha_is_broken_off(how: str, tmp_path: Path) -> None:
    """What was stopped stays stopped, what was running goes on, and nobody is lost."""
    root = tmp_path / "runs" / "asha"
    sweep = SweepProcess(tmp_path, SWEEP)
    sweep.wait_until(lambda: stops(root) and running(root))
    before, cut_off = stops(root), running(root)
    getattr(sweep, how)()
    assert sweep.process.wait(120) != 0
    assert "Traceback" not in sweep.error
    assert stops(root) == before
    again = SweepProcess(tmp_path, SWEEP)
    assert again.wait() == 0, again.error
    assert {name: stops(root)[name] for name in before} == before
    # Each of the four searches was finished or stopped.
    values = json.loads((root / "genotypes.json").read_text())
    names = [stop["name"] for stop in values["stopped"]]
    done = [trial["name"] for genotype in values["genotypes"] for trial in genotype["trials"]]
    assert sorted(names) == sorted(stops(root)) and done and values["not_finished"] == []
    assert sorted([*names, *done]) == [f"config_00{i}_seed_0" for i in range(4)]
    trace = (root / "search" / cut_off / "alpha.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in trace] == list(range(len(trace)))
    third = SweepProcess(tmp_path, SWEEP)
    assert third.wait() == 0, third.error
    assert "nothing to run" in third.output
    assert third.left_behind() == []
