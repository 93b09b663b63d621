"""What a Ray Train worker does: one search or one retraining, from its last epoch on."""

import time
from typing import Any

from ray import train

from dasvit.report.events import Event
from dasvit.run.garbage import lasting_imports
from dasvit.run.settings import config_to_dict
from dasvit.search.config import SearchConfig
from tune.job import Job, JobError

__all__ = ["work"]


def work(loop_config: dict[str, Any]) -> None:
    """Run the "job" of `loop_config`.

    After any error Ray Train ends all workers of the trial. It starts them anew, to continue from
    the last epoch, unless the error would come again. Nothing is reported to Ray Train: the epochs
    are in the trial's folder, from where `tune.relay` takes them.

    Raises:
        JobError: an error that would come again; its message is the reason for the report.
    """
    job: Job = loop_config["job"]
    began = time.time()
    try:
        # Not at the top: the processes that only pass this function on need none of it.
        with lasting_imports():
            import torch

            from dasvit.report.tensorboard import TensorBoardReport
            from dasvit.search.loop import search
            from dasvit.training.loop import retrain

        imported = time.time()
        torch.set_num_threads(job.demand.cpus)
        report, device = _nobody, job.demand.device
        first = job.demand.workers == 1 or train.get_context().get_world_rank() == 0
        if first:
            report = TensorBoardReport(job.folder, config_to_dict(job.config))
        if job.demand.workers > 1 and job.demand.gpus:
            device = str(train.torch.get_device())
        options: dict[str, Any] = {"report": report, "resume": True, "device": device}
        if isinstance(job.config, SearchConfig):
            search(job.config, job.folder, **options)
        else:
            retrain(job.config, job.folder, **options)
        if first:
            job.record_worker(began=began, imported=imported, ended=time.time())
    except (ValueError, FloatingPointError, ImportError) as error:
        raise JobError(str(error)) from error


def _nobody(event: Event) -> None:
    """Of several workers the first one reports."""
