"""Ray Train's trainer as the trials need it: what it restarts, and what it does not start."""

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from tune.job import JobError

__all__ = ["JobTrainer", "RestartPolicy"]


class JobTrainer(TorchTrainer):
    """A `TorchTrainer` whose workers read their data themselves and end at a `JobError`.

    Ray Train 2.60 starts an actor that shares out Ray data sets even where there are none: a
    process that imports Ray and pandas, a tenth of what a small trial costs. There is no setting
    for it, hence the inner names; Ray's version is pinned.
    """

    def _create_default_callbacks(self) -> list[Any]:
        assert not self.datasets
        return [
            _NoDatasets() if isinstance(callback, DatasetsCallback) else callback
            for callback in super()._create_default_callbacks()
        ]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        policy = RestartPolicy(parts["failure_policy"].failure_config)
        return super()._initialize_and_run_controller(**parts | {"failure_policy": policy})


class RestartPolicy(DefaultFailurePolicy):
    """Ray Train's own, but for a `JobError` of any worker."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(failure, JobError) for failure in failures.values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _NoDatasets(WorkerGroupCallback):
    """Workers get a context in which no data set can be asked for."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}
