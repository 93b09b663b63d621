"""A trial without Ray's cluster: what it leaves, what it reports, how it fails."""

import errno
import json
import os
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError

from dasvit.data.config import DataConfig
from dasvit.report.record import read_trace
from dasvit.search.config import SearchConfig
from dasvit.spaces.cell.operations import registered_operations
from dasvit.training.config import RetrainConfig
from tune import trial
from tune.demand import Demand
from tune.searcher import CONFIGURATION, SEED
from tune.space import first_draws, outer_space
from tune.trial import Job, RetrainSetup, SearchSetup, root_cause, wait_for_files
from tune.trial_folder import ERROR_FILE, STOP_FILE, find_searches, read_failure, read_stop

NEED = Demand(cpus=1, gpus=0.0, concurrent=2)

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def setup(search_config: SearchConfig, tmp_path: Path) -> SearchSetup:
    return SearchSetup(
        search=search_config, trials_dir=tmp_path, ray_dir=tmp_path / "ray", demand=NEED
    )


@pytest.fixture
def sampled(search_config: SearchConfig) -> dict[str, Any]:
    return first_draws(search_config, outer_space(search_config))[0] | {CONFIGURATION: 3, SEED: 1}


@pytest.fixture
def job(setup: SearchSetup, sampled: dict[str, Any]) -> Job:
    return setup.job(sampled)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a trial in this process; what it reports to Tune."""

    def made(setup: SearchSetup | RetrainSetup, sampled: dict[str, Any]) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = []
        monkeypatch.setattr(trial.tune, "report", reports.append)
        trial._trial(sampled, setup)
        return reports

    return made


def test_a_trial_is_named_by_configuration_and_seed(job: Job, tmp_path: Path) -> None:
    assert job.folder == tmp_path / "config_003_seed_1"
    assert job.config.seed == 1
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_retraining_is_named_by_model_and_seed(tmp_path: Path) -> None:
    retrain = RetrainConfig(data=DataConfig(image_size=8), patch_size=4, dim=8, seed=5)
    setup = RetrainSetup(
        retrain=retrain,
        genotypes_dir=tmp_path / "genotypes",
        trials_dir=tmp_path / "retrain",
        ray_dir=tmp_path / "ray",
        demand=NEED,
    )
    job = setup.job({"model": "0123456789ab", "seed": 7})
    assert (job.folder.name, job.config.seed) == ("0123456789ab_seed_7", 7)
    assert isinstance(job.config, RetrainConfig)
    assert job.config.model == str(tmp_path / "genotypes" / "0123456789ab.json")
    vit = setup.job({"model": "vit", "seed": 7}).config
    assert isinstance(vit, RetrainConfig) and vit.model == "vit"


def test_a_check_differs_from_its_search_by_the_seed_alone(setup: SearchSetup) -> None:
    draw = {"token_ratio": 0.1 + 0.2, "gamma_max": 0.7, "xi": 1e-3}
    for seed in (7, 8):
        job = setup.job(draw | {CONFIGURATION: 3, SEED: seed})
        assert job.folder.name == f"config_003_seed_{seed}"
        assert job.config == setup.search.replaced(**draw, seed=seed)


def test_a_trial_runs_reports_and_is_not_run_again(
    setup: SearchSetup, sampled: dict[str, Any], job: Job, run: Run, tmp_path: Path
) -> None:
    first = run(setup, sampled)
    assert [row["epoch"] for row in read_trace(job.trace)] == [0, 1]
    assert [report.get("epoch") for report in first] == [1, 2, None]
    assert all(0 <= report["supernet_accuracy"] <= 1 for report in first)
    assert [report.get("finished") for report in first] == [None, None, 1]
    (found,), _, left = find_searches(tmp_path, [3], range(1, 2))
    assert left == []
    assert (found.config_index, found.seed, found.settings["seed"]) == (3, 1, 1)
    assert found.discretised_accuracy == first[-1]["discretised_accuracy"]
    assert found.wall_seconds is not None and found.wall_seconds >= found.seconds
    assert list(job.folder.glob("events.out.tfevents.*"))
    before = {p: p.stat().st_mtime_ns for p in job.folder.iterdir()}
    assert run(setup, sampled) == first
    assert {p: p.stat().st_mtime_ns for p in job.folder.iterdir()} == before


def test_a_mistake_of_the_user_is_recorded_once(
    setup: SearchSetup, sampled: dict[str, Any], job: Job, run: Run
) -> None:
    job.folder.mkdir()
    (job.folder / "genotype.json").write_text("{}")  # somebody else's
    assert run(setup, sampled) == [{"finished": 0}]
    assert "holds something else" in str(read_failure(job.folder).error)
    (job.folder / "genotype.json").unlink()
    assert run(setup, sampled)[-1]["finished"] == 1
    assert not job.failed()


def failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("dasvit.search.loop.search", fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_a_trial_without_a_restart(
    number: int,
    setup: SearchSetup,
    sampled: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(OSError(number, "no room"), monkeypatch)
    assert run(setup, sampled) == [{"finished": 0}]


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale handle"), RuntimeError("stale")])
def test_other_errors_are_tunes_to_retry(
    error: Exception,
    setup: SearchSetup,
    sampled: dict[str, Any],
    job: Job,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(error, monkeypatch)
    with pytest.raises(type(error), match="stale"):
        run(setup, sampled)
    assert not job.failed()
    # Tune has started it again often enough.
    setup.record_failure(sampled, "Traceback\n  at somewhere\nRuntimeError: it died\n")
    assert read_failure(job.folder).error == "RuntimeError: it died"
    setup.record_failure(sampled, "OSError: something later")
    assert read_failure(job.folder).error == "RuntimeError: it died"


PLUGIN = """
import os, random, threading
import torch
from torch import nn
from dasvit.spaces.cell.operations import register_operation

os.environ["LEFT_BY_A_TRIAL"] = "{name}"

class Scaled(nn.Module):
    def __init__(self, dim, **options):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), {value}))

    def forward(self, x):
        return x * self.weight

register_operation("scaled", Scaled)
"""


def test_nothing_of_a_trial_stays_in_its_process(
    search_config: SearchConfig,
    tmp_path: Path,
    sampled: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two plug-ins that register the same name: each trial has its own, whatever ran before it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in (("plug_a", 0.5), ("plug_b", 2.0)):
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(name=name, value=value))

    def scores(folder: str, names: tuple[str, ...]) -> list[float]:
        found = []
        for name in names:
            setup = SearchSetup(
                search=search_config.replaced(
                    operations=("zero", "identity", "msa_h2", "mlp_r3", "scaled"), plugins=(name,)
                ),
                trials_dir=tmp_path / folder / name,
                ray_dir=tmp_path / "ray",
                demand=NEED,
            )
            found.append(run(setup, sampled)[-1]["supernet_accuracy"])
        return found

    known, environment = registered_operations(), dict(os.environ)
    threads, alive = torch.get_num_threads(), threading.active_count()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    forth = scores("forth", ("plug_a", "plug_b"))
    assert registered_operations() == known and dict(os.environ) == environment
    assert (torch.get_num_threads(), threading.active_count()) == (threads, alive)
    now = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert now == states
    assert scores("back", ("plug_b", "plug_a")) == forth[::-1]
    assert forth[0] != forth[1]


def test_files_that_show_late_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    threading.Timer(0.3, path.touch).start()
    wait_for_files([tmp_path / "error.json", path])
    assert path.exists()
    wait_for_files([tmp_path / "error.json"], seconds=0.01)


def group_error(*failures: Exception) -> WorkerGroupError:
    """As if the workers had failed so, in this order."""
    return WorkerGroupError("", dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("cannot allocate"), "MemoryError: cannot allocate"),
        (KeyError(), "KeyError"),
        (RuntimeError("a\n\nb\n"), "RuntimeError: b"),
    ],
)
def test_the_reason_of_a_failure(error: Exception, expected: str) -> None:
    assert root_cause(group_error(error)) == expected
    assert root_cause(error) == expected


def test_the_reason_is_that_of_the_worker_that_failed_by_itself() -> None:
    broken_off = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:53962")
    away = OSError("first line\nthe file system is away")
    assert root_cause(group_error(broken_off, away)) == "OSError: the file system is away"
    assert "Connection closed" in root_cause(group_error(broken_off))


def test_malformed_records_are_named(job: Job, setup: SearchSetup, sampled: dict[str, Any]) -> None:
    setup.record_stop(sampled, {"epoch": 1, "supernet_accuracy": 0.5})
    stop = read_stop(job.folder)
    assert stop is not None and stop.score == 0.5
    for name, read in ((STOP_FILE, read_stop), (ERROR_FILE, read_failure)):
        for text in ("{}", "[]"):
            (job.folder / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name} is no record of .*; delete it"):
                read(job.folder)


def test_a_stopped_search_is_told_again_and_not_run(
    job: Job,
    setup: SearchSetup,
    sampled: dict[str, Any],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup.record_stop(sampled, {"epoch": 1, "supernet_accuracy": 0.4})
    row = {"epoch": 0, "total_epochs": 2, "val_accuracy": 0.4, "train_loss": None}
    job.trace.write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(trial, "_run", lambda job: pytest.fail("it was run"))
    (report,) = run(setup, sampled)
    assert (report["epoch"], report["supernet_accuracy"]) == (1, 0.4)
    assert "finished" not in report
