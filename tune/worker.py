"""What a Ray Train worker does: one search or one retraining, from its last epoch on."""

import time
from typing import Any

from ray import train

from dasvit.config import SearchConfig, config_to_dict
from dasvit.garbage import lasting_imports
from dasvit.metrics import Event
from tune.job import Job

__all__ = ["work"]


def work(loop_config: dict[str, Any]) -> None:
    """Run the "job" of `loop_config`.

    Errors that would come again are recorded in the trial's folder; others are raised: Ray Train
    then starts the worker anew, and it continues from its last epoch. Nothing is reported to Ray
    Train: the epochs are in the trial's folder, from where `tune.relay` takes them.
    """
    job: Job = loop_config["job"]
    began = time.time()
    try:
        # Not at the top: the processes that only pass this function on need none of it.
        with lasting_imports():
            import torch

            from dasvit.retrain import retrain
            from dasvit.search import search
            from dasvit.tensorboard import tensorboard_report

        imported = time.time()
        torch.set_num_threads(job.demand.cpus)
        report, device = _nobody, job.demand.device
        first = job.demand.workers == 1 or train.get_context().get_world_rank() == 0
        if first:
            report = tensorboard_report(job.folder, config_to_dict(job.config))
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
        job.record_failure(str(error))


def _nobody(event: Event) -> None:
    """Of several workers the first one reports."""
