import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from dasvit.config import DataConfig, RetrainConfig, SearchConfig
from dasvit.trace import read_trace
from tune import worker
from tune.cluster import Demand
from tune.job import Job
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX
from tune.space import first_draws
from tune.trainable import RetrainSetup, SearchSetup
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


def test_a_mistake_of_the_user_is_recorded(search_job: Job) -> None:
    search_job.folder.mkdir()
    (search_job.folder / "genotype.json").write_text("{}")  # somebody else's
    worker.work({"job": search_job})
    assert search_job.failed() and search_job.result() is None
    failure = read_failure(search_job.folder)
    assert failure.error is not None and "holds something else" in failure.error
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


def test_a_job_travels_between_processes(search_job: Job) -> None:
    assert pickle.loads(pickle.dumps(search_job)) == search_job
