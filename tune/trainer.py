"""Ray Train's trainer as the trials need it: what it restarts, and what it does not start."""

import os
from typing import Any

import ray
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import (
    PlacementGroupCleaner,
)
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException

from tune.job import JobError

__all__ = ["JobTrainer", "RestartPolicy"]

STATE_SECONDS = 10
"""What Ray's state service has to answer."""


class JobTrainer(TorchTrainer):
    """A `TorchTrainer` whose workers read their data themselves and end at a `JobError`.

    Ray Train 2.60 starts an actor that shares out Ray data sets even where there are none: a
    process that imports Ray and pandas, a tenth of what a small trial costs. There is no setting
    for it, hence the inner names; Ray's version is pinned.
    """

    def _create_default_callbacks(self) -> list[Any]:
        assert not self.datasets
        ours: dict[type, type] = {
            DatasetsCallback: _NoDatasets,
            PlacementGroupCleanerCallback: _CleanUpHere,
        }
        return [
            ours[type(callback)]() if type(callback) in ours else callback
            for callback in super()._create_default_callbacks()
        ]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        driver = ray.get_runtime_context().get_actor_id()
        policy = RestartPolicy(parts["failure_policy"].failure_config, driver)
        return super()._initialize_and_run_controller(**parts | {"failure_policy": policy})


class RestartPolicy(DefaultFailurePolicy):
    """Ray Train's own, but for a `JobError` of any worker, and for a driver that is gone.

    A driver that a scheduler stopped, or that was killed, takes the workers and the controller with
    it, in this order. The controller must not take the workers' end for a fault: the workers it
    started anew would be cut off before Ray Train has noted what they hold, and their CPUs and GPUs
    would be lost to the sweep.

    Args:
        driver: actor id of the trial's driver; None where it is no actor.
    """

    def __init__(self, failure_config: FailureConfig, driver: str | None = None) -> None:
        super().__init__(failure_config)
        self._driver = driver

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(failure, JobError) for failure in failures.values()):
            return FailureDecision.RAISE
        if self._driver is not None and not _is_alive(self._driver):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def _is_alive(actor: str) -> bool:
    try:
        state = get_actor(actor, timeout=STATE_SECONDS)
    except (RayStateApiException, OSError, RuntimeError, ValueError):
        return True  # not known: as Ray Train itself would go on
    return state is not None and state.state != "DEAD"


def _ask_this_cluster() -> None:
    """Ray's state service looks for a cluster on this machine, and gives up where there are two."""
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


class _CleanUpHere(PlacementGroupCleanerCallback):
    """What frees the CPUs and GPUs of a controller that was killed: beside other clusters too."""

    def after_controller_start(self, train_run_context: Any) -> None:
        _ask_this_cluster()  # for the restart policy, in this process
        placement_group_callback.PlacementGroupCleaner = _Cleaner  # that starts its process
        super().after_controller_start(train_run_context)


class _Cleaner(PlacementGroupCleaner):
    def __init__(self, **options: Any) -> None:
        _ask_this_cluster()
        super().__init__(**options)


class _NoDatasets(WorkerGroupCallback):
    """Workers get a context in which no data set can be asked for."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}
