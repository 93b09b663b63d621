"""Ray Train's trainer without the process that would hand out Ray data sets."""

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.torch.torch_trainer import TorchTrainer

__all__ = ["OwnDataTrainer"]


class OwnDataTrainer(TorchTrainer):
    """A `TorchTrainer` whose workers read their data themselves.

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


class _NoDatasets(WorkerGroupCallback):
    """Workers get a context in which no data set can be asked for."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}
