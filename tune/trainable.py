"""One trial: a Ray Train run with one worker, inside a Tune trial.

The worker writes into the trial's folder on the shared storage and continues from there when it
is started again, whether by Ray Train (the worker died), by Tune (the driver died) or by the
user (the same command once more).
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from dasvit.config import RetrainConfig, SearchConfig, config_to_dict
from dasvit.files import write_atomic
from dasvit.metrics import (
    Event,
    Report,
    RetrainEpoch,
    RetrainResult,
    SearchEpoch,
    SearchResult,
    StageEnd,
    scalars,
    tee,
)
from dasvit.trace import load_retrain_result, load_search_result
from tune.cluster import Demand
from tune.searcher import CONFIG_INDEX, TRIAL_INDEX
from tune.space import to_search_config
from tune.trials import (
    ERROR_FILE,
    TIMES_FILE,
    model_file,
    retrain_dirname,
    retrain_settings,
    search_dirname,
)

__all__ = ["Job", "RetrainSetup", "SearchSetup", "retrain_trainable", "search_trainable"]

# The driver waits and computes nothing: it takes no CPU from the workers, and a sliver of a
# resource that only the head node has keeps it there, where no spot instance is taken away.
DRIVER_RESOURCES = {"cpu": 0, "node:__internal_head__": 0.001}

REPORT_EVERY_SECONDS = 4.0
"""A report to Ray makes the worker wait until its controller has looked: up to half a second."""

WORKER_RESTARTS = 3
FILES_APPEAR_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSetup:
    """What all search trials of a sweep share."""

    search: SearchConfig
    trials_dir: Path
    ray_dir: Path
    demand: Demand

    def job(self, sampled: dict[str, Any]) -> "Job":
        seed = self.search.seed + sampled[TRIAL_INDEX]
        name = search_dirname(sampled[CONFIG_INDEX], seed)
        config = to_search_config(self.search, sampled, seed)
        return Job("search", config, name, self.trials_dir, self.ray_dir, self.demand)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainSetup:
    """What all retrainings of a sweep share."""

    retrain: RetrainConfig
    genotypes_dir: Path
    trials_dir: Path
    ray_dir: Path
    demand: Demand

    def job(self, sampled: dict[str, Any]) -> "Job":
        model, seed = sampled["model"], sampled["seed"]
        config = retrain_settings(self.retrain, model_file(self.genotypes_dir, model), seed)
        name = retrain_dirname(model, seed)
        return Job("retrain", config, name, self.trials_dir, self.ray_dir, self.demand)


@dataclass(frozen=True, slots=True)
class Job:
    """One trial's work."""

    kind: Literal["search", "retrain"]
    config: SearchConfig | RetrainConfig
    name: str
    trials_dir: Path
    ray_dir: Path
    demand: Demand

    @property
    def folder(self) -> Path:
        return self.trials_dir / self.name

    def finished(self) -> SearchResult | RetrainResult | None:
        """The result in the folder, if the trial has finished."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        return load_search_result(path) if self.kind == "search" else load_retrain_result(path)


def search_trainable(setup: SearchSetup) -> Any:
    """The Tune trainable of a search trial; its configuration is a draw of `outer_space`."""
    return _trainable(setup)


def retrain_trainable(setup: RetrainSetup) -> Any:
    """The Tune trainable of a retraining; its configuration holds "model" and "seed"."""
    return _trainable(setup)


def _trainable(setup: SearchSetup | RetrainSetup) -> Any:
    return tune.with_resources(tune.with_parameters(_trial, setup=setup), DRIVER_RESOURCES)


def _trial(sampled: dict[str, Any], setup: SearchSetup | RetrainSetup) -> None:
    """The Tune trainable. A failure is recorded in the folder and ends the trial without a
    score; only the death of this process itself makes Tune start the trial again."""
    job = setup.job(sampled)
    finished = job.finished()
    if finished is not None:
        tune.report({**scalars(finished), "finished": 1})
        return
    started = time.monotonic()
    (job.folder / ERROR_FILE).unlink(missing_ok=True)
    try:
        _train(job)
    except train.TrainingFailedError as error:
        _record_error(job, _root_cause(error))
    finished = _wait_for_result(job)
    if finished is None:
        tune.report({"finished": 0})
        return
    times = {"wall_seconds": time.monotonic() - started, "seconds": finished.seconds}
    write_atomic(job.folder / TIMES_FILE, json.dumps(times, indent=2) + "\n")
    tune.report({**scalars(finished), "finished": 1})


def _train(job: Job) -> None:
    resources = {"CPU": float(job.demand.cpus)}
    if job.demand.gpus:
        resources["GPU"] = job.demand.gpus
    TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        scaling_config=train.ScalingConfig(
            num_workers=1, use_gpu=job.demand.gpus > 0, resources_per_worker=resources
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=str(job.ray_dir / job.name),
            callbacks=[TuneReportCallback()],
            failure_config=train.FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    ).fit()


def _wait_for_result(job: Job) -> SearchResult | RetrainResult | None:
    """The worker's result, or None where it left an error. A network file system may show
    another node's files seconds late."""
    deadline = time.monotonic() + FILES_APPEAR_SECONDS
    while True:
        finished = job.finished()
        if finished is not None or (job.folder / ERROR_FILE).exists():
            return finished
        if time.monotonic() > deadline:
            _record_error(job, "the worker ended without a result; is the storage path shared?")
            return None
        time.sleep(0.5)


def _record_error(job: Job, message: str) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(job.folder / ERROR_FILE, json.dumps({"error": message}, indent=2) + "\n")


def _worker(loop_config: dict[str, Any]) -> None:
    """The Ray Train worker. Errors that would come again are recorded, others raised: Ray Train
    then starts the worker anew, and it continues from its last epoch."""
    import torch

    job: Job = loop_config["job"]
    torch.set_num_threads(job.demand.cpus)
    try:
        _run(job, tee(_tensorboard(job), _RayReport()))
    except (ValueError, FloatingPointError, ImportError) as error:
        _record_error(job, str(error))


def _run(job: Job, report: Report) -> None:
    arguments: dict[str, Any] = {"report": report, "resume": True, "device": job.demand.device}
    if isinstance(job.config, SearchConfig):
        from dasvit.search import search

        search(job.config, job.folder, **arguments)
    else:
        from dasvit.retrain import retrain

        retrain(job.config, job.folder, **arguments)


def _tensorboard(job: Job) -> Report:
    """TensorBoard files in the trial's folder. Opened at the first event, whose epoch says what
    an interrupted run wrote beyond it."""
    # Imported here, as all that needs torch: this module is also imported by Ray's processes
    # that compute nothing.
    from dasvit.tensorboard import TensorBoardReport

    writer: TensorBoardReport | None = None

    def report(event: Event) -> None:
        nonlocal writer
        if writer is None:
            hparams = config_to_dict(job.config)
            writer = TensorBoardReport(job.folder, start_epoch=_epoch(event), hparams=hparams)
        writer(event)

    return report


def _epoch(event: Event) -> int:
    if isinstance(event, SearchEpoch | RetrainEpoch):
        return event.epoch
    # A run that stopped between its last epoch and its end: all epochs are to be kept.
    return event.epoch + 1 if isinstance(event, StageEnd) else sys.maxsize


class _RayReport:
    """Forwards epochs to Ray, not more often than is worth the wait."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if not isinstance(event, SearchEpoch | RetrainEpoch):
            return
        now = time.monotonic()
        if now - self._last < REPORT_EVERY_SECONDS:
            return
        self._last = now
        done = event.epoch + 1
        train.report(
            {
                **scalars(event),
                "epoch": done,
                "total_epochs": event.total_epochs,
                # Tune counts reports anew after a restart; epochs stay what they are.
                "timesteps_total": done,
            }
        )


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost failure, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
