"""What a Ray Train worker does: one search or one retraining, from its last epoch on."""

import time
from typing import Any

from ray import train

from dasvit.config import SearchConfig, config_to_dict
from dasvit.garbage import lasting_imports
from dasvit.metrics import Event, RetrainEpoch, SearchEpoch, scalars, tee
from tune.job import Job

__all__ = ["work"]

REPORT_EVERY_SECONDS = 4.0
"""A report to Ray makes the worker wait until its controller has looked: up to half a second."""


def work(loop_config: dict[str, Any]) -> None:
    """Run the "job" of `loop_config`.

    Errors that would come again are recorded in the trial's folder; others are raised: Ray Train
    then starts the worker anew, and it continues from its last epoch.
    """
    job: Job = loop_config["job"]
    try:
        # Not at the top: the processes that only pass this function on need none of it.
        with lasting_imports():
            import torch

            from dasvit.retrain import retrain
            from dasvit.search import search
            from dasvit.tensorboard import tensorboard_report

        torch.set_num_threads(job.demand.cpus)
        report = tee(tensorboard_report(job.folder, config_to_dict(job.config)), _RayReport())
        options: dict[str, Any] = {"report": report, "resume": True, "device": job.demand.device}
        if isinstance(job.config, SearchConfig):
            search(job.config, job.folder, **options)
        else:
            retrain(job.config, job.folder, **options)
    except (ValueError, FloatingPointError, ImportError) as error:
        job.record_failure(str(error))


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
