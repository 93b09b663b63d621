"""A trial without Ray's cluster: what it leaves, what it reports, how it fails."""

import errno
import json
import os
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.train.v2.api.exceptions import WorkerGroupError
from support.events import SEARCH_RESULT

from dasvit.data.config import DataConfig
from dasvit.report.record import read_trace, save_result
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
STOP = {"epoch": 1, "supernet_accuracy": 0.4}

Sampled = dict[str, Any]
Run = Callable[[SearchSetup, Sampled], list[dict[str, Any]]]


@pytest.fixture
def setup(search_config: SearchConfig, tmp_path: Path) -> SearchSetup:
    return SearchSetup(
        search=search_config, trials_dir=tmp_path, ray_dir=tmp_path / "ray", demand=NEED
    )


@pytest.fixture
def sampled(search_config: SearchConfig) -> Sampled:
    return first_draws(search_config, outer_space(search_config))[0] | {CONFIGURATION: 3, SEED: 1}


@pytest.fixture
def job(setup: SearchSetup, sampled: Sampled) -> Job:
    return setup.job(sampled)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a trial in this process; what it reports to Tune."""

    def made(setup: SearchSetup, sampled: Sampled) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = []
        monkeypatch.setattr(trial.tune, "report", reports.append)
        trial._trial(sampled, setup)
        return reports

    return made


def test_trials_differ_by_their_seed_and_are_named_by_it(
    setup: SearchSetup, tmp_path: Path
) -> None:
    draw = {"token_ratio": 0.1 + 0.2, "gamma_max": 0.7, "xi": 1e-3}
    for seed in (7, 8):
        job = setup.job(draw | {CONFIGURATION: 3, SEED: seed})
        assert job.folder == tmp_path / f"config_003_seed_{seed}"
        assert job.config == setup.search.replaced(**draw, seed=seed)
        assert pickle.loads(pickle.dumps(job)) == job
    retrain = RetrainConfig(data=DataConfig(image_size=8), patch_size=4, dim=8, seed=5)
    places = {"trials_dir": tmp_path, "ray_dir": tmp_path / "ray"}
    retrained = RetrainSetup(retrain=retrain, genotypes_dir=tmp_path, demand=NEED, **places)
    for model, where in (("vit", "vit"), ("0123456789ab", str(tmp_path / "0123456789ab.json"))):
        job = retrained.job({"model": model, "seed": 7})
        assert job.folder == tmp_path / f"{model}_seed_7"
        assert job.config == replace(retrain, model=where, seed=7)


def test_a_trial_runs_reports_and_is_not_run_again(
    setup: SearchSetup, sampled: Sampled, job: Job, run: Run, tmp_path: Path
) -> None:
    """A mistake of the user is recorded; once it is mended, the trial runs."""
    job.folder.mkdir()
    (job.folder / "genotype.json").write_text("{}")  # somebody else's
    assert run(setup, sampled) == [{"finished": 0}]
    assert "holds something else" in str(read_failure(job.folder).error)
    (job.folder / "genotype.json").unlink()
    first = run(setup, sampled)
    assert not job.failed()
    assert [row["epoch"] for row in read_trace(job.trace)] == [0, 1]
    assert [report.get("epoch") for report in first] == [1, 2, None]
    assert all(0 <= report["supernet_accuracy"] <= 1 for report in first)
    assert [report.get("finished") for report in first] == [None, None, 1]
    (found,), _, left = find_searches(tmp_path, [3], range(1, 2))
    assert left == []
    assert (found.config_index, found.seed, found.settings["seed"]) == (3, 1, 1)
    assert found.discretised_accuracy == first[-1]["discretised_accuracy"]
    assert found.wall_seconds is not None and found.wall_seconds >= found.seconds
    before = {p: p.stat().st_mtime_ns for p in job.folder.iterdir()}
    assert run(setup, sampled) == first
    assert {p: p.stat().st_mtime_ns for p in job.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (OSError(errno.ENOSPC, "stale"), False),  # a restart meets it again
        (OSError(errno.ESTALE, "stale"), True),
        (RuntimeError("stale"), True),
    ],
)
def test_what_is_tunes_to_retry(
    error: Exception,
    retried: bool,
    setup: SearchSetup,
    sampled: Sampled,
    job: Job,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("dasvit.search.loop.search", fail)
    if not retried:
        assert run(setup, sampled) == [{"finished": 0}]
        return
    with pytest.raises(type(error), match="stale"):
        run(setup, sampled)
    assert not job.failed()
    # Tune has started it again often enough.
    for text in ("Traceback\n  at somewhere\nRuntimeError: it died\n", "OSError: something later"):
        setup.record_failure(sampled, text)
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


def state_of_the_process() -> list[Any]:
    numpy, torch_own = np.random.get_state()[1], torch.get_rng_state()  # type: ignore[index]
    states = [random.getstate(), numpy.tolist(), torch_own.tolist()]
    threads = [torch.get_num_threads(), threading.active_count()]
    return [registered_operations(), dict(os.environ), *states, *threads]


def test_nothing_of_a_trial_stays_in_its_process(
    setup: SearchSetup,
    tmp_path: Path,
    sampled: Sampled,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two plug-ins that register the same name: each trial has its own, whatever ran before it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in (("plug_a", 0.5), ("plug_b", 2.0)):
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(name=name, value=value))
    operations = ("zero", "identity", "msa_h2", "mlp_r3", "scaled")

    def score(number: int, plugin: str) -> float:
        search = setup.search.replaced(operations=operations, plugins=(plugin,))
        own = replace(setup, search=search, trials_dir=tmp_path / str(number))
        return run(own, sampled)[-1]["supernet_accuracy"]

    before = state_of_the_process()
    first, other, again = (score(*own) for own in enumerate(("plug_a", "plug_b", "plug_a")))
    assert state_of_the_process() == before
    assert first == again != other


def test_files_that_show_late_are_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    threading.Timer(0.3, path.touch).start()
    wait_for_files([tmp_path / "error.json", path])
    assert path.exists()
    wait_for_files([tmp_path / "error.json"], seconds=0.01)


BROKEN_OFF = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:53962")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([MemoryError("cannot allocate")], "MemoryError: cannot allocate"),
        ([KeyError()], "KeyError"),
        ([RuntimeError("a\n\nb\n")], "RuntimeError: b"),
        # That of the worker that failed by itself.
        ([BROKEN_OFF, OSError("the file system is away")], "OSError: the file system is away"),
        ([BROKEN_OFF], f"RuntimeError: {BROKEN_OFF}"),
    ],
)
def test_the_reason_of_a_failure(failures: list[Exception], expected: str) -> None:
    assert root_cause(WorkerGroupError("", dict(enumerate(failures)))) == expected
    assert root_cause(failures[-1]) == expected


def test_a_stopped_search_is_neither_failed_nor_finished_nor_run(
    job: Job,
    setup: SearchSetup,
    sampled: Sampled,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup.record_stop(sampled, STOP)
    finished, (stop,), failed = find_searches(tmp_path, range(2, 4), range(1, 2))
    assert (finished, [f.name for f in failed]) == ([], ["config_002_seed_1"])
    assert (stop.name, stop.epochs, stop.score) == ("config_003_seed_1", 1, 0.4)
    assert stop.settings["token_ratio"] == sampled["token_ratio"]
    row = {"epoch": 0, "total_epochs": 2, "val_accuracy": 0.4, "train_loss": None}
    job.trace.write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(trial, "_run", lambda job: pytest.fail("it was run"))
    (report,) = run(setup, sampled)
    assert (report["epoch"], report["supernet_accuracy"]) == (1, 0.4)
    assert "finished" not in report
    # The trial may have ended while the scheduler decided: then its result counts.
    save_result(job.folder / "result.json", SEARCH_RESULT)
    finished, stopped, _ = find_searches(tmp_path, [3], range(1, 2))
    assert ([trial.name for trial in finished], stopped) == (["config_003_seed_1"], [])


def test_malformed_records_are_named(job: Job) -> None:
    job.folder.mkdir()
    for name, read in ((STOP_FILE, read_stop), (ERROR_FILE, read_failure)):
        for text in ("{}", "[]"):
            (job.folder / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name} is no record of .*; delete it"):
                read(job.folder)
