"""Searches that a scheduler stops early: neither failed nor finished, and never run again."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.events import SEARCH_RESULT
from support.sweep_process import SweepProcess

from dasvit.report.record import save_result
from dasvit.search.config import SearchConfig
from tune.demand import Demand
from tune.experiment import asha
from tune.options import parse_options
from tune.plan import Plan
from tune.searcher import CONFIGURATION, SEED
from tune.space import first_draws, outer_space
from tune.trial import SearchSetup
from tune.trial_folder import STOP_FILE, find_searches

ASHA = "--scheduler asha --metric supernet_accuracy"


@pytest.fixture
def setup(search_config: SearchConfig, tmp_path: Path) -> SearchSetup:
    need = Demand(cpus=1, gpus=0.0, concurrent=1)
    return SearchSetup(
        search=search_config, trials_dir=tmp_path, ray_dir=tmp_path / "ray", demand=need
    )


@pytest.fixture
def sampled(search_config: SearchConfig) -> dict[str, Any]:
    return first_draws(search_config, outer_space(search_config))[0] | {CONFIGURATION: 3, SEED: 0}


def test_the_plan() -> None:
    options = parse_options(shlex.split(ASHA))
    made = options.plan
    assert (made.scheduler, made.first_rung, made.reduction_factor) == ("asha", 1, 3)
    read = Plan.from_dict(json.loads(json.dumps(made.to_dict())))
    assert (read.scheduler, read.first_rung, read.reduction_factor) == ("asha", 1, 3)
    paper = parse_options(shlex.split(f"--preset cifar10 --data-dir . {ASHA}"))
    assert paper.plan.first_rung == 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--scheduler asha", "--metric supernet_accuracy"),
        ("--grace-epochs 2", "--grace-epochs is ASHA's: add --scheduler asha"),
        (f"{ASHA} --eval-epochs 2", "accuracy of every epoch"),
        (f"{ASHA} --grace-epochs 6", "less than a search's 6 epochs"),
        (f"{ASHA} --grace-epochs -1", "grace_epochs must lie in [0, 100000]"),
        (f"{ASHA} --reduction-factor 1", "at least 2"),
        (f"{ASHA} --stage-epochs 1 --stage-layers 1 --stage-ops 8", "one epoch"),
        (f"{ASHA} --search random", "--search random takes no --scheduler"),
    ],
)
def test_bad_input(argv: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse_options(shlex.split(argv))
    assert message in str(error.value)


def test_asha_stops_the_one_that_lags() -> None:
    """At its first rung: the later, worse of two is ended; the last epoch ends nobody."""

    class Trial:
        def __init__(self, name: str, index: int) -> None:
            self.trial_id = name
            self.config = {CONFIGURATION: index}

    scheduler: Any = asha(total_epochs=6, grace_epochs=1, reduction_factor=2, spared=2)
    good, bad, baseline = Trial("good", 3), Trial("bad", 2), Trial("baseline", 1)
    for trial in (good, bad, baseline):
        scheduler.on_trial_add(None, trial)

    def tell(trial: Trial, epoch: int, score: float) -> str:
        result = {"epoch": epoch, "supernet_accuracy": score, "training_iteration": epoch}
        return scheduler.on_trial_result(None, trial, result)

    assert tell(good, 1, 0.6) == "CONTINUE"
    assert tell(bad, 1, 0.3) == "STOP"
    assert tell(baseline, 1, 0.2) == "CONTINUE"  # what the sweep is compared with
    assert [tell(good, epoch, 0.6) for epoch in range(2, 7)] == ["CONTINUE"] * 5
    final = {"finished": 1, "supernet_accuracy": 0.6}
    assert scheduler.on_trial_result(None, good, final) == "CONTINUE"


def test_asha_ends_nobody_who_has_had_all_epochs() -> None:
    """With 9 epochs from 1 by 3 there is a rung at the last."""
    scheduler: Any = asha(total_epochs=9, grace_epochs=1, reduction_factor=3)
    for number in range(4):
        trial = SimpleNamespace(trial_id=str(number), config={CONFIGURATION: number})
        scheduler.on_trial_add(None, trial)
        for epoch in range(1, 10):
            score = 0.9 if epoch < 9 else 0.9 - 0.1 * number
            result = {"epoch": epoch, "supernet_accuracy": score, "training_iteration": epoch}
            assert scheduler.on_trial_result(None, trial, result) == "CONTINUE"


def test_a_stopped_search_is_neither_failed_nor_finished(
    setup: SearchSetup, sampled: dict[str, Any], tmp_path: Path
) -> None:
    setup.record_stop(sampled, {"epoch": 1, "supernet_accuracy": 0.4})
    finished, (stop,), failed = find_searches(tmp_path, range(4), range(1))
    assert finished == []
    assert [f.name for f in failed] == [f"config_00{i}_seed_0" for i in range(3)]
    assert (stop.name, stop.epochs, stop.score) == ("config_003_seed_0", 1, 0.4)
    assert stop.settings["token_ratio"] == sampled["token_ratio"]


def test_a_result_outweighs_a_stop(
    setup: SearchSetup, sampled: dict[str, Any], tmp_path: Path
) -> None:
    """The trial may have ended while the scheduler decided."""
    setup.record_stop(sampled, {"epoch": 1, "supernet_accuracy": 0.4})
    save_result(setup.job(sampled).folder / "result.json", SEARCH_RESULT)
    finished, stopped, _ = find_searches(tmp_path, range(4), range(1))
    assert ([trial.name for trial in finished], stopped) == (["config_003_seed_0"], [])


SWEEP = [
    *shlex.split(f"{ASHA} --grace-epochs 1 --reduction-factor 2 --num-samples 4 --seeds 1 --xi 0"),
    *shlex.split("--name asha --dim 12 --stage-layers 1 1 1 --retrain-top 1 --retrain.epochs 2"),
    *shlex.split("--retrain.warmup-epochs 1 --retrain.dim 12 --retrain.depth 2"),
    *("--max-concurrent-trials", "1"),
]


def stops(root: Path) -> dict[str, bytes]:
    """What the trials' folders hold of the searches that were stopped."""
    return {path.parent.name: path.read_bytes() for path in root.glob(f"search/*/{STOP_FILE}")}


def running(root: Path) -> str:
    """A search that has written down an epoch and is neither finished nor stopped."""
    ends = ("result.json", STOP_FILE)
    traces = root.glob("search/*/alpha.jsonl")
    names = (t.parent.name for t in traces if not any((t.parent / e).exists() for e in ends))
    return next(names, "")


def assert_all_accounted_for(root: Path) -> None:
    """Each of the four searches was finished or stopped, and some were stopped."""
    values = json.loads((root / "genotypes.json").read_text())
    names = [stop["name"] for stop in values["stopped"]]
    done = [trial["name"] for genotype in values["genotypes"] for trial in genotype["trials"]]
    assert names and done and values["not_finished"] == []
    assert sorted([*names, *done]) == [f"config_00{i}_seed_0" for i in range(4)]
    assert sorted(names) == sorted(stops(root))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_ray_at_a_time")
def test_a_sweep_with_asha(tmp_path: Path) -> None:
    """Some are stopped, slots are freed, and the same command finds nothing to do."""
    sweep = SweepProcess(tmp_path, SWEEP)
    assert sweep.wait() == 0, sweep.error
    assert sweep.left_behind() == []
    assert_all_accounted_for(tmp_path / "runs" / "asha")
    again = SweepProcess(tmp_path, SWEEP)
    assert again.wait() == 0, again.error
    assert "nothing to run" in again.output


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
    assert_all_accounted_for(root)
    trace = (root / "search" / cut_off / "alpha.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in trace] == list(range(len(trace)))
