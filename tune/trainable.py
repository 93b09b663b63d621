"""One trial: a Ray Train run inside a Tune trial, with one worker, or several for a retraining.

The worker writes into the trial's folder on the shared storage and continues from there when it
is started again, whether by Ray Train (the worker died), by Tune (this process died) or by the
user (the same command once more).
"""

import contextlib
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import train, tune

from dasvit.report.events import RetrainResult, SearchResult, scalars
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.cluster import Demand
from tune.job import Job, JobError, last_line
from tune.relay import EpochRelay, replay
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX
from tune.space import to_search_config
from tune.trainer import JobTrainer
from tune.trials import model_file, retrain_dirname, retrain_settings, search_dirname
from tune.worker import work

__all__ = [
    "RetrainSetup",
    "SearchSetup",
    "failure_recorder",
    "make_trainable",
    "root_cause",
    "stop_recorder",
]

# The driver waits and computes nothing: it takes no CPU from the workers, and a sliver of a
# resource that only the head node has keeps it there, where no spot instance is taken away.
DRIVER_RESOURCES = {"cpu": 0, "node:__internal_head__": 0.001}

WORKER_RESTARTS = 3
FILES_APPEAR_SECONDS = 60.0

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the storage that a restart meets again."""

BROKEN_OFF = ("Connection closed by peer", "Connection reset by peer", "NCCL")
"""In the messages of gloo and NCCL where another process is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSetup:
    """What all search trials of a sweep share.

    Attributes:
        scheduled: a scheduler compares trials by epoch, and may stop them early.
        costs_at: the size at which what an encoder costs is reported too.
    """

    search: SearchConfig
    trials_dir: Path
    ray_dir: Path
    demand: Demand
    scheduled: bool = False
    costs_at: RetrainConfig | None = None

    def job(self, sampled: dict[str, Any]) -> Job:
        """The work of a trial, from its draw and its numbers."""
        seed = self.search.seed + sampled[TRIAL_INDEX]
        return Job(
            config=to_search_config(self.search, sampled, seed),
            name=search_dirname(sampled[CONFIG_INDEX], seed),
            trials_dir=self.trials_dir,
            ray_dir=self.ray_dir,
            demand=self.demand,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainSetup:
    """What all retrainings of a sweep share."""

    retrain: RetrainConfig
    genotypes_dir: Path
    trials_dir: Path
    ray_dir: Path
    demand: Demand

    def job(self, sampled: dict[str, Any]) -> Job:
        """The work of a trial, from its "model" and "seed"."""
        model, seed = sampled["model"], sampled["seed"]
        return Job(
            config=retrain_settings(self.retrain, model_file(self.genotypes_dir, model), seed),
            name=retrain_dirname(model, seed),
            trials_dir=self.trials_dir,
            ray_dir=self.ray_dir,
            demand=self.demand,
        )


def make_trainable(setup: SearchSetup | RetrainSetup) -> Any:
    """The Tune trainable whose configuration `setup.job` turns into work."""
    return tune.with_resources(tune.with_parameters(_trial, setup=setup), DRIVER_RESOURCES)


def failure_recorder(
    setup: SearchSetup | RetrainSetup,
) -> Callable[[dict[str, Any], str], None]:
    """What keeps the reason of a trial whose driver failed: its configuration, the error's text."""

    def record(sampled: dict[str, Any], text: str) -> None:
        job = setup.job(sampled)
        if not job.failed():
            with contextlib.suppress(OSError):  # a full disk: then it has none
                job.record_failure(f"its driver failed: {last_line(text)}")

    return record


def stop_recorder(setup: SearchSetup) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """What keeps that the scheduler ended a search: its configuration, its last report."""

    def record(sampled: dict[str, Any], last: dict[str, Any]) -> None:
        job = setup.job(sampled)
        if job.result() is None:
            job.record_stop(epochs=last["epoch"], score=last["supernet_accuracy"])

    return record


def _trial(sampled: dict[str, Any], setup: SearchSetup | RetrainSetup) -> None:
    """A failure is recorded in the trial's folder and ends the trial without a score; only the
    death of this process itself makes Tune start the trial again."""
    job = setup.job(sampled)
    stopped = job.stopped()
    if isinstance(setup, SearchSetup) and setup.scheduled and (stopped or job.result()):
        replay(job.trace, tune.report)
    if stopped:
        tune.report({"supernet_accuracy": stopped.score, "epoch": stopped.epochs})
        return
    try:
        result = job.result() or _train(job)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        result = None  # not even the reason can be written down
    if result is None:
        tune.report({"finished": 0})
        return
    tune.report({**scalars(result), **_costs(result, setup), "finished": 1})


def _costs(
    result: SearchResult | RetrainResult, setup: SearchSetup | RetrainSetup
) -> dict[str, int]:
    if not isinstance(result, SearchResult) or not isinstance(setup, SearchSetup):
        return {}
    if setup.costs_at is None:
        return {}
    from dasvit.run.plugins import load_plugins
    from tune.objectives import cost

    load_plugins(setup.search.plugins)
    return cost(result.genotype, setup.costs_at)


def _train(job: Job) -> SearchResult | RetrainResult | None:
    started = time.time()  # the worker's clock too, which may be another machine's
    job.forget_failure()
    resources = {"CPU": float(job.demand.cpus)}
    if job.demand.gpus:
        resources["GPU"] = job.demand.gpus
    # Any: in Ray's annotations these classes are of its old or its new version.
    scaling: Any = train.ScalingConfig(
        num_workers=job.demand.workers, use_gpu=job.demand.gpus > 0, resources_per_worker=resources
    )
    failures: Any = train.FailureConfig(max_failures=WORKER_RESTARTS)
    run: Any = train.RunConfig(
        name="train",
        storage_path=str(job.ray_dir / job.name),
        failure_config=failures,
    )
    trainer = JobTrainer(
        work, train_loop_config={"job": job}, scaling_config=scaling, run_config=run
    )
    try:
        with EpochRelay(job.trace, tune.report):
            trainer.fit()
    except train.TrainingFailedError as error:
        job.record_failure(root_cause(error))
    result = _wait_for_result(job)
    if result is not None:
        job.record_times(started=started, ended=time.time(), seconds=result.seconds)
    return result


def _wait_for_result(job: Job) -> SearchResult | RetrainResult | None:
    """The worker's result, or None where it left an error. A network file system may show
    another node's files seconds late."""
    deadline = time.monotonic() + FILES_APPEAR_SECONDS
    while True:
        result = job.result()
        if result is not None or job.failed():
            return result
        if time.monotonic() > deadline:
            job.record_failure("the worker ended without a result; is the storage path shared?")
            return None
        time.sleep(0.5)


def root_cause(error: BaseException) -> str:
    """The last line of the innermost failure, without Ray's wrapping. Of several workers, of the
    one that failed by itself."""
    failures = list(getattr(error, "worker_failures", {}).values())
    cause = min(failures, key=_distance, default=error)
    if isinstance(cause, JobError):
        return str(cause)
    return last_line(str(cause), type(cause))


def _distance(failure: BaseException) -> int:
    """From the cause: a worker whose sum with the others broke off tells of their end only."""
    if isinstance(failure, JobError):
        return 0
    return 2 if any(words in str(failure) for words in BROKEN_OFF) else 1
