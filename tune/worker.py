"""What a Ray Train worker does: one search or one retraining, from its last epoch on."""

import sys
import time
from typing import Any

from ray import train

from dasvit.config import SearchConfig, config_to_dict
from dasvit.metrics import Event, Report, RetrainEpoch, SearchEpoch, StageEnd, scalars, tee
from tune.job import Job

__all__ = ["work"]

REPORT_EVERY_SECONDS = 4.0
"""A report to Ray makes the worker wait until its controller has looked: up to half a second."""


def work(loop_config: dict[str, Any]) -> None:
    """Run the "job" of `loop_config`.

    Errors that would come again are recorded in the trial's folder; others are raised: Ray Train
    then starts the worker anew, and it continues from its last epoch.
    """
    import torch

    job: Job = loop_config["job"]
    torch.set_num_threads(job.demand.cpus)
    try:
        _run(job, tee(_tensorboard(job), _RayReport()))
    except (ValueError, FloatingPointError, ImportError) as error:
        job.record_failure(str(error))


def _run(job: Job, report: Report) -> None:
    options: dict[str, Any] = {"report": report, "resume": True, "device": job.demand.device}
    if isinstance(job.config, SearchConfig):
        from dasvit.search import search

        search(job.config, job.folder, **options)
    else:
        from dasvit.retrain import retrain

        retrain(job.config, job.folder, **options)


def _tensorboard(job: Job) -> Report:
    """TensorBoard files in the trial's folder. Opened at the first event, whose epoch says what
    an interrupted run wrote beyond it."""
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
        if time.monotonic() - self._last < REPORT_EVERY_SECONDS:
            return
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
        self._last = time.monotonic()
