import errno
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.state.exception import RayStateApiException
from tune.job import Job, JobError
from tune.trainable import RetrainSetup, SearchSetup, failure_recorder, root_cause
from tune.trainer import RestartPolicy

from dasvit.data.config import DataConfig
from dasvit.report.record import read_trace
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune import trainable, worker
from tune.cluster import Demand
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX
from tune.space import first_draws
from tune.trial_folder import ERROR_FILE, STOP_FILE, load_search_trial, read_failure, read_stop

NEED = Demand(cpus=1, gpus=0.0, concurrent=2)


@pytest.fixture
def search_job(search_config: SearchConfig, tmp_path: Path) -> Job:
    setup = SearchSetup(
        search=search_config, trials_dir=tmp_path, ray_dir=tmp_path / "ray", demand=NEED
    )
    return setup.job({**first_draws(search_config)[0], CONFIG_INDEX: 3, TRIAL_INDEX: 1})


def test_a_trial_is_named_by_configuration_and_seed(search_job: Job, tmp_path: Path) -> None:
    assert search_job.folder == tmp_path / "config_003_seed_1"
    assert search_job.config.seed == 1


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
    assert (job.name, job.config.seed) == ("0123456789ab_seed_7", 7)
    assert job.config.model == str(tmp_path / "genotypes" / "0123456789ab.json")
    assert setup.job({"model": "vit", "seed": 7}).config.model == "vit"


def test_the_worker_leaves_a_trial(search_job: Job, tmp_path: Path) -> None:
    worker.work({"job": search_job})
    assert [row["epoch"] for row in read_trace(search_job.trace)] == [0, 1]
    result = search_job.result()
    trial = load_search_trial(tmp_path, 3, 1)
    assert result is not None and trial is not None
    assert trial.genotype == result.genotype
    assert (trial.config_index, trial.seed, trial.settings["seed"]) == (3, 1, 1)
    assert trial.wall_seconds is None
    marks = json.loads((search_job.folder / "worker_times.json").read_text())
    search_job.record_times(
        started=marks["began"] - 5.0, ended=marks["ended"] + 2.0, seconds=result.seconds
    )
    again = load_search_trial(tmp_path, 3, 1)
    assert again is not None and again.wall_seconds is not None
    times = json.loads((search_job.folder / "times.json").read_text())
    parts = times["parts"]
    assert (parts["start"], parts["end"]) == (pytest.approx(5.0), pytest.approx(2.0))
    assert min(parts.values()) >= 0.0
    assert sum(parts.values()) + result.seconds == pytest.approx(again.wall_seconds)
    assert list(search_job.folder.glob("events.out.tfevents.*"))


def test_a_mistake_of_the_user_would_come_again(search_job: Job) -> None:
    search_job.folder.mkdir()
    (search_job.folder / "genotype.json").write_text("{}")  # somebody else's
    with pytest.raises(JobError, match="holds something else"):
        worker.work({"job": search_job})
    assert search_job.result() is None


def test_a_failure_is_recorded_until_it_is_forgotten(search_job: Job) -> None:
    search_job.record_failure("out of patience")
    assert search_job.failed()
    assert read_failure(search_job.folder).error == "out of patience"
    search_job.forget_failure()
    assert not search_job.failed()
    assert read_failure(search_job.folder).error is None


def test_a_drivers_failure_is_kept_where_there_is_no_better_reason(
    search_config: SearchConfig, tmp_path: Path
) -> None:
    setup = SearchSetup(
        search=search_config, trials_dir=tmp_path, ray_dir=tmp_path / "ray", demand=NEED
    )
    record = failure_recorder(setup)
    drawn = {**first_draws(search_config)[0], CONFIG_INDEX: 0, TRIAL_INDEX: 0}
    record(drawn, "Traceback\n  at somewhere\nRuntimeError: the driver died\n")
    folder = setup.job(drawn).folder
    assert read_failure(folder).error == "its driver failed: RuntimeError: the driver died"
    record(drawn, "OSError: something later")
    assert "the driver died" in str(read_failure(folder).error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("cannot allocate"), "MemoryError: cannot allocate"),
        (KeyError(), "KeyError"),
        (JobError("in all its words"), "in all its words"),
        (WorkerGroupError("", {0: RuntimeError("a\n\nb\n")}), "RuntimeError: b"),
    ],
)
def test_the_reason_of_a_failure(error: BaseException, expected: str) -> None:
    failures = error if isinstance(error, WorkerGroupError) else WorkerGroupError("", {0: error})
    assert root_cause(failures) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_a_trial_without_a_restart(
    number: int, search_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = train_that_raises(OSError(number, "no room"), monkeypatch)
    run_trial(search_job, tmp_path)
    assert reports == [{"finished": 0}]


def test_other_errors_of_a_driver_are_tunes_to_retry(
    search_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_that_raises(OSError(errno.ESTALE, "stale handle"), monkeypatch)
    with pytest.raises(OSError, match="stale"):
        run_trial(search_job, tmp_path)


def train_that_raises(error: OSError, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Instead of Ray Train; what is reported to Tune."""

    def fail(job: Job) -> None:
        raise error

    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(trainable, "_train", fail)
    monkeypatch.setattr(trainable.tune, "report", reports.append)
    return reports


def run_trial(job: Job, tmp_path: Path) -> None:
    assert isinstance(job.config, SearchConfig)
    setup = SearchSetup(
        search=job.config, trials_dir=tmp_path, ray_dir=tmp_path / "ray", demand=NEED
    )
    trainable._trial({**first_draws(job.config)[0], CONFIG_INDEX: 3, TRIAL_INDEX: 0}, setup)


def test_other_errors_are_ray_trains_to_retry(
    search_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the file system is away")

    monkeypatch.setattr("dasvit.search.loop.search", fail)
    with pytest.raises(OSError, match="away"):
        worker.work({"job": search_job})
    assert not search_job.failed()


BROKEN_OFF = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:53962")


def failed(*failures: Exception) -> WorkerGroupError:
    """As if the workers had failed so, in this order."""
    return WorkerGroupError("", dict(enumerate(failures)))


@pytest.mark.parametrize(
    "others", [(), (BROKEN_OFF,), (OSError("away"),)], ids=["alone", "broken off", "another"]
)
def test_no_restart_after_what_would_come_again(others: tuple[Exception, ...]) -> None:
    policy = RestartPolicy(FailureConfig(max_failures=1))
    assert policy.make_decision(failed(*others, JobError("bad"))) is FailureDecision.RAISE
    # It was none of the restarts that other errors have.
    assert policy.make_decision(failed(OSError("away"))) is FailureDecision.RETRY
    assert policy.make_decision(failed(OSError("away"))) is FailureDecision.RAISE


@pytest.mark.parametrize(
    ("driver", "decision"),
    [("ALIVE", "RETRY"), ("DEAD", "RAISE"), (None, "RAISE"), ("no answer", "RETRY")],
)
def test_no_restart_for_a_driver_that_is_gone(
    driver: str | None, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scheduler stopped it, or it was killed: what were started anew nobody would free."""

    def get_actor(actor: str, timeout: int) -> Any:
        assert actor == "ab12"
        if driver == "no answer":
            raise RayStateApiException("away")
        return driver and SimpleNamespace(state=driver)

    monkeypatch.setattr("tune.trainer.get_actor", get_actor)
    policy = RestartPolicy(FailureConfig(max_failures=1), driver="ab12")
    assert policy.make_decision(failed(OSError("away"))).name == decision


def test_the_reason_is_that_of_the_worker_that_failed_by_itself() -> None:
    away = OSError("first line\nthe file system is away")
    assert root_cause(failed(BROKEN_OFF, away)) == "OSError: the file system is away"
    assert root_cause(failed(BROKEN_OFF, away, JobError("bad\nvalue"))) == "bad\nvalue"
    assert "Connection closed" in root_cause(failed(BROKEN_OFF))
    assert root_cause(OSError("")) == "OSError"


def test_malformed_records_are_named(search_job: Job) -> None:
    search_job.record_stop(epochs=1, score=0.5)
    stop = read_stop(search_job.folder)
    assert stop is not None and stop.score == 0.5
    for name, read in ((STOP_FILE, read_stop), (ERROR_FILE, read_failure)):
        for text in ("{}", "[]"):
            (search_job.folder / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name} is no record of .*; delete it"):
                read(search_job.folder)


def test_a_job_travels_between_processes(search_job: Job) -> None:
    assert pickle.loads(pickle.dumps(search_job)) == search_job
