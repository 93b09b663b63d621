import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError

from dasvit.config import DataConfig, RetrainConfig, SearchConfig
from dasvit.trace import read_trace
from tune import worker
from tune.cluster import Demand
from tune.job import Job, JobError
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX
from tune.space import first_draws
from tune.trainable import RetrainSetup, SearchSetup, _root_cause
from tune.trainer import RestartPolicy
from tune.trials import load_search_trial, read_failure

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
    search_job.record_times(wall_seconds=30.0, seconds=20.0)
    again = load_search_trial(tmp_path, 3, 1)
    assert again is not None and again.wall_seconds == 30.0
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


def test_other_errors_are_ray_trains_to_retry(
    search_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the file system is away")

    monkeypatch.setattr("dasvit.search.search", fail)
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


def test_the_reason_is_that_of_the_worker_that_failed_by_itself() -> None:
    away = OSError("first line\nthe file system is away")
    assert _root_cause(failed(BROKEN_OFF, away)) == "the file system is away"
    assert _root_cause(failed(BROKEN_OFF, away, JobError("bad\nvalue"))) == "bad\nvalue"
    assert "Connection closed" in _root_cause(failed(BROKEN_OFF))
    assert _root_cause(OSError("")) == "OSError"


def test_a_job_travels_between_processes(search_job: Job) -> None:
    assert pickle.loads(pickle.dumps(search_job)) == search_job
