"""One trial: a search or a retraining, in the process of its Tune trial.

A trial writes into its folder on the shared storage, and continues from there when it is started
again: by Tune (its process died) or by the user (the same command once more). Several processes
train one network as Ray Train's workers, beside the trial's own.
"""

import contextlib
import dataclasses
import errno
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import train, tune

from dasvit.report.events import Event, RetrainEpoch, SearchEpoch, SearchResult, scalars
from dasvit.report.record import read_trace
from dasvit.run.files import write_atomic
from dasvit.run.garbage import lasting_imports
from dasvit.run.plugins import load_plugins, plugins_end_here
from dasvit.run.settings import config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.as_found import process_as_found
from tune.demand import Demand
from tune.searcher import CONFIGURATION, SEED
from tune.space import METHOD, to_search_config
from tune.trial_folder import (
    ERROR_FILE,
    RESULT_FILE,
    SHORT_DIR,
    STOP_FILE,
    TIMES_FILE,
    load_result,
    load_short,
    read_stop,
    retrain_dirname,
    search_dirname,
)

__all__ = [
    "Job",
    "RetrainSetup",
    "SearchSetup",
    "make_trainable",
    "root_cause",
    "wait_for_files",
]

RESTARTS = 3
"""Of a trial's workers, where it has several."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the storage that a restart meets again."""

DRIVER_RESOURCES = {"cpu": 0, "node:__internal_head__": 0.001}
"""Of a trial whose workers compute: no CPU, and a sliver of what the head node alone has. There no
spot instance is taken away."""

BROKEN_OFF = ("Connection closed by peer", "Connection reset by peer", "NCCL")
"""In the messages of gloo and NCCL where another process is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a trial computes, and where its files go."""

    config: SearchConfig | RetrainConfig
    folder: Path
    demand: Demand
    ray_dir: Path
    short: RetrainConfig | None = None
    """After a search: how its encoder is trained for the score."""

    def result(self) -> Any:
        """What the trial left, if it has finished."""
        if self.short is not None and load_short(self.folder) is None:
            return None
        return load_result(self.folder, search=isinstance(self.config, SearchConfig))

    @property
    def trace(self) -> Path:
        """Its epochs, a JSON line each."""
        name = "alpha.jsonl" if isinstance(self.config, SearchConfig) else "train.jsonl"
        return self.folder / name

    def write(self, name: str, values: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / name, json.dumps(values, indent=2) + "\n")

    def failed(self) -> bool:
        return (self.folder / ERROR_FILE).exists()

    def record_failure(self, message: str) -> None:
        """Keep why there is no result, for the report."""
        self.write(ERROR_FILE, {"error": message})


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What all trials of a phase share."""

    trials_dir: Path
    ray_dir: Path
    demand: Demand

    def job(self, sampled: dict[str, Any]) -> Job:
        """The work of the trial with this configuration."""
        raise NotImplementedError

    def record_failure(self, sampled: dict[str, Any], text: str) -> None:
        """Keep the error's text of a trial that failed more often than it is started again."""
        job = self.job(sampled)
        if not job.failed():
            with contextlib.suppress(OSError):  # a full disk: then it has none
                job.record_failure(_last_line(text))


@dataclass(frozen=True, kw_only=True)
class SearchSetup(_Setup):
    """What all search trials of a sweep share.

    Attributes:
        starts: what a trial begins from in the place of `search`, by its method's name where
            methods take turns.
        short: how what they find is trained for the score; None where something else is the score.
        costs_at: the size at which what an encoder costs is reported too.
    """

    search: SearchConfig
    starts: Mapping[str, SearchConfig] = field(default_factory=dict)
    short: RetrainConfig | None = None
    costs_at: RetrainConfig | None = None

    def job(self, sampled: dict[str, Any]) -> Job:
        seed = sampled[SEED]
        folder = self.trials_dir / search_dirname(sampled[CONFIGURATION], seed)
        own = {"model": str(folder / "genotype.json"), "seed": seed}
        return Job(
            config=to_search_config(
                self.starts.get(sampled.get(METHOD, ""), self.search), sampled, seed
            ),
            folder=folder,
            ray_dir=self.ray_dir,
            demand=self.demand,
            short=self.short and dataclasses.replace(self.short, **own),
        )

    def record_stop(self, sampled: dict[str, Any], last: dict[str, Any]) -> None:
        """Keep that the scheduler ended a search, with its last report."""
        job = self.job(sampled)
        if job.result() is None and not (job.folder / STOP_FILE).exists():
            assert isinstance(job.config, SearchConfig)
            values = {
                "epochs": last["epoch"],
                "total_epochs": job.config.total_epochs,
                "score": last["supernet_accuracy"],
                "settings": job.config.outer_settings,
            }
            job.write(STOP_FILE, values)


@dataclass(frozen=True, kw_only=True)
class RetrainSetup(_Setup):
    """What all retrainings of a sweep share."""

    retrain: RetrainConfig
    genotypes_dir: Path

    def job(self, sampled: dict[str, Any]) -> Job:
        model, seed = sampled["model"], sampled["seed"]
        where = model if model == "vit" else str(self.genotypes_dir / f"{model}.json")
        return Job(
            config=dataclasses.replace(self.retrain, model=where, seed=seed),
            folder=self.trials_dir / retrain_dirname(model, seed),
            ray_dir=self.ray_dir,
            demand=self.demand,
        )


def make_trainable(setup: SearchSetup | RetrainSetup) -> Any:
    """The Tune trainable whose configuration `setup.job` turns into work."""
    need = setup.demand
    one = {"cpu": need.cpus, "gpu": need.gpus}
    resources = one if need.workers == 1 else DRIVER_RESOURCES
    return tune.with_resources(tune.with_parameters(_trial, setup=setup), resources)


def _trial(sampled: dict[str, Any], setup: SearchSetup | RetrainSetup) -> None:
    """A failure that would come again is recorded in the trial's folder and ends the trial without
    a score. After any other Tune starts it again, to continue from the last epoch."""
    job = setup.job(sampled)
    stopped = None if job.result() else read_stop(job.folder)
    if stopped or job.result():
        # For the scheduler, which compares by epoch, and for Ray's own record.
        for row in read_trace(job.trace):
            tune.report(_metrics(row))
    if stopped:
        return
    try:
        result = job.result() or _run(job)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        result = None  # not even the reason can be written down
    if result is None:
        tune.report({"finished": 0})
        return
    costs = {}
    if isinstance(setup, SearchSetup) and setup.costs_at is not None:
        from tune.objectives import cost

        assert isinstance(result, SearchResult)
        _import_heavy()
        with plugins_end_here():
            load_plugins(setup.search.plugins)
            costs = cost(result.genotype, setup.costs_at)
    short = load_short(job.folder) if job.short else None
    score = {} if short is None else {"trained_accuracy": short.balanced_accuracy}
    tune.report({**scalars(result), **score, **costs, "finished": 1})


def _run(job: Job) -> Any:
    """The result, or None where a failure is recorded."""
    started = time.time()
    (job.folder / ERROR_FILE).unlink(missing_ok=True)
    need = job.demand
    # Any: in Ray's annotations these classes are of its old or its new version.
    scaling: Any = train.ScalingConfig(num_workers=0, use_gpu=need.gpus > 0)
    options: dict[str, Any] = {"name": "train", "storage_path": str(job.ray_dir / job.folder.name)}
    if need.workers > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        each = {"CPU": float(need.cpus)} | ({"GPU": need.gpus} if need.gpus else {})
        scaling = train.ScalingConfig(
            num_workers=need.workers, use_gpu=need.gpus > 0, resources_per_worker=each
        )
        options["callbacks"] = [TuneReportCallback()]
        options["failure_config"] = train.FailureConfig(max_failures=RESTARTS)
    from ray.train.torch import TorchTrainer

    run: Any = train.RunConfig(**options)
    trainer = TorchTrainer(
        _work, train_loop_config={"job": job}, scaling_config=scaling, run_config=run
    )
    try:
        if need.workers == 1:
            _import_heavy()  # what registers itself there stays
            with process_as_found():
                trainer.fit()
        else:
            trainer.fit()
    except (ValueError, FloatingPointError, ImportError) as error:
        job.record_failure(str(error))
    except train.TrainingFailedError as error:
        if not job.failed():
            job.record_failure(root_cause(error))
    if need.workers > 1:  # they may have written on another node
        wait_for_files([job.folder / RESULT_FILE, job.folder / ERROR_FILE])
    result = job.result()
    if result is not None:
        ended = time.time()
        job.write(TIMES_FILE, {"wall_seconds": ended - started, "seconds": result.seconds})
    elif not job.failed():
        job.record_failure("the workers ended without a result; is the storage path shared?")
    return result


def _import_heavy() -> None:
    """Not at the top: with several workers the trial's own process needs none of it."""
    if "dasvit.training.loop" in sys.modules:
        return
    with lasting_imports():
        import dasvit.report.tensorboard
        import dasvit.search.loop
        import dasvit.training.loop  # noqa: F401


def _work(loop_config: dict[str, Any]) -> None:
    """What Ray Train runs: the "job" of `loop_config`, from its last epoch on."""
    job: Job = loop_config["job"]
    workers = job.demand.workers
    if workers > 1 and job.failed():
        return  # Ray Train starts its workers again after any error; this one would come again
    _import_heavy()
    import torch

    from dasvit.report.tensorboard import TensorBoardReport
    from dasvit.search.loop import search
    from dasvit.training.loop import retrain

    torch.set_num_threads(job.demand.cpus)
    device = job.demand.device
    if workers > 1 and job.demand.gpus:
        device = str(train.torch.get_device())
    first = workers == 1 or train.get_context().get_world_rank() == 0
    write = None
    if first:
        settings, scored = config_to_dict(job.config), job.short is not None
        write = TensorBoardReport(job.folder, settings, scored=scored)
    tell: Callable[[dict[str, Any]], Any] = tune.report if workers == 1 else train.report

    def report(event: Event) -> None:
        if write is not None:
            write(event)
        if isinstance(event, SearchEpoch | RetrainEpoch):
            tell(_metrics({f.name: getattr(event, f.name) for f in dataclasses.fields(event)}))

    try:
        if isinstance(job.config, SearchConfig):
            search(job.config, job.folder, report=report, resume=True, device=device)
            if job.short is not None:
                score = _short_training(job.short, job.folder / SHORT_DIR, device=device)
                if write is not None:
                    write.score(score)
        else:
            retrain(job.config, job.folder, report=report, resume=True, device=device)
            if job.config.held_out and first:
                _drop_weights(job.folder)
    except (ValueError, FloatingPointError, ImportError) as error:
        if workers > 1:
            job.record_failure(str(error))
        raise
    finally:
        if write is not None:
            write.close()


def _short_training(config: RetrainConfig, folder: Path, *, device: str) -> float:
    """The search score: class-balanced accuracy (ratio)."""
    from dasvit.training.loop import retrain

    result = retrain(config, folder, resume=True, device=device)
    _drop_weights(folder)
    assert result.balanced_accuracy is not None
    return result.balanced_accuracy


def _drop_weights(folder: Path) -> None:
    """Of a training that only ranks, its result is needed, and its weights are not."""
    from dasvit.training.model_folder import MODEL_DIR

    (folder / "checkpoint.pt").unlink(missing_ok=True)
    shutil.rmtree(folder / MODEL_DIR, ignore_errors=True)


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an epoch, of its event or its row; "epoch" counts the finished ones."""
    numbers = {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    done = values["epoch"] + 1
    if "val_accuracy" in numbers:  # by the name that its result will have
        numbers["supernet_accuracy"] = numbers["val_accuracy"]
    # Tune counts reports anew after a restart; epochs stay what they are.
    return {**numbers, "epoch": done, "timesteps_total": done}


def wait_for_files(paths: Sequence[Path], seconds: float = 60.0) -> None:
    """Until one of the files is there: a network file system may show what another node has written
    seconds late."""
    deadline = time.monotonic() + seconds
    while not any(path.exists() for path in paths) and time.monotonic() < deadline:
        time.sleep(0.2)


def root_cause(error: BaseException) -> str:
    """The last line of the innermost failure, without Ray's wrapping. Of several workers, of the
    one that failed by itself."""
    failures = list(getattr(error, "worker_failures", {}).values())

    def broken_off(failure: BaseException) -> bool:  # it tells of another's end only
        return any(words in str(failure) for words in BROKEN_OFF)

    cause = min(failures, key=broken_off, default=error)
    kind = type(cause)
    last = _last_line(str(cause))
    if kind.__module__ == "builtins" or not last:
        return ": ".join(filter(None, (kind.__name__, last)))
    return last


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
