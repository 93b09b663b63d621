"""What the trials left behind, as plain values. The workers' own files are the record, not
Tune's: they survive restarts of any part. No Ray here."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasvit.report.record import load_retrain_result, load_search_result
from dasvit.run.files import read_json
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.config import RetrainConfig

__all__ = [
    "Failure",
    "RetrainTrial",
    "SearchTrial",
    "StoppedTrial",
    "config_index",
    "load_retrain_trial",
    "load_search_trial",
    "read_failure",
    "read_stop",
    "retrain_dirname",
    "search_dirname",
]

ERROR_FILE = "error.json"
STOP_FILE = "stopped.json"
TIMES_FILE = "times.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial:
    """A finished search: one proposed configuration on one seed.

    Attributes:
        name: of its folder.
        config_index: number of the proposal.
        seed: of the search.
        settings: the outer settings, by name.
        genotype: the derived encoder.
        supernet_accuracy, discretised_accuracy: on the validation half (ratio).
        skip_share, zero_share: mean weight of `identity` and `zero` at the end.
        seconds: of its epochs.
        wall_seconds: from the start of its Ray trial to its end; None if not measured.
    """

    name: str
    config_index: int
    seed: int
    settings: dict[str, Any]
    genotype: Genotype
    supernet_accuracy: float
    discretised_accuracy: float
    skip_share: float
    zero_share: float
    seconds: float
    wall_seconds: float | None = None

    @property
    def gap(self) -> float:
        return self.supernet_accuracy - self.discretised_accuracy

    def score(self, metric: str) -> float:
        """The value that ranks: `discretised_accuracy` or `supernet_accuracy`."""
        return float(getattr(self, metric))


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainTrial:
    """A finished retraining.

    Attributes:
        name: of its folder.
        model: canonical hash of the genotype, or "vit".
        seed: of the retraining.
        test_top1, test_top5, train_accuracy: ratios.
        num_params: parameters.
        peak_memory_bytes, num_processes: as in `RetrainResult`.
        seconds, wall_seconds: as in `SearchTrial`.
    """

    name: str
    model: str
    seed: int
    test_top1: float
    test_top5: float
    train_accuracy: float
    num_params: int
    seconds: float
    peak_memory_bytes: int | None = None
    num_processes: int = 1
    wall_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial without a result; `error` is None if it was not started or was interrupted."""

    name: str
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppedTrial:
    """A search that the scheduler ended early: it neither failed nor finished, and has no encoder.

    Attributes:
        name: of its folder.
        epochs, total_epochs: that it had, and would have had.
        score: validation accuracy of its supernet then (ratio).
        settings: the outer settings, by name.
    """

    name: str
    epochs: int
    total_epochs: int
    score: float
    settings: dict[str, Any]


def search_dirname(config_index: int, seed: int) -> str:
    """Folder of a search trial: `config_003_seed_1`."""
    return f"config_{config_index:03d}_seed_{seed}"


def config_index(dirname: str) -> int:
    """The configuration of a search trial, from its folder's name."""
    return int(dirname.removeprefix("config_").partition("_")[0])


def retrain_dirname(model: str, seed: int) -> str:
    """Folder of a retraining: `1f2e3d4c5b6a_seed_0`, `vit_seed_0`."""
    return f"{model}_seed_{seed}"


def load_search_trial(root: Path, config_index: int, seed: int) -> SearchTrial | None:
    """The search trial in `root`'s folder for it, or None if it has not finished.

    Raises:
        ValueError: a malformed result file.
    """
    folder = root / search_dirname(config_index, seed)
    if not (folder / "result.json").exists():
        return None
    result = load_search_result(folder / "result.json")
    return SearchTrial(
        name=folder.name,
        config_index=config_index,
        seed=seed,
        settings=result.settings,
        genotype=result.genotype,
        supernet_accuracy=result.supernet_accuracy,
        discretised_accuracy=result.discretised_accuracy,
        skip_share=result.skip_share,
        zero_share=result.zero_share,
        seconds=result.seconds,
        wall_seconds=_wall_seconds(folder),
    )


def load_retrain_trial(root: Path, model: str, seed: int) -> RetrainTrial | None:
    """The retraining in `root`'s folder for it, or None if it has not finished.

    Raises:
        ValueError: a malformed result file.
    """
    folder = root / retrain_dirname(model, seed)
    if not (folder / "result.json").exists():
        return None
    result = load_retrain_result(folder / "result.json")
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return RetrainTrial(
        **values | {"name": folder.name, "model": model, "seed": seed},
        wall_seconds=_wall_seconds(folder),
    )


def read_failure(folder: Path) -> Failure:
    """Why the trial in `folder` has no result."""
    if (folder / ERROR_FILE).exists():
        return Failure(folder.name, _value(folder / ERROR_FILE, "error", "trial error"))
    return Failure(folder.name)


def read_stop(folder: Path) -> StoppedTrial | None:
    """How the scheduler ended the search in `folder`, if it did."""
    path = folder / STOP_FILE
    if not path.exists():
        return None
    names = [f.name for f in dataclasses.fields(StoppedTrial) if f.name != "name"]
    return StoppedTrial(
        name=folder.name, **{name: _value(path, name, "stopped trial") for name in names}
    )


def model_file(genotypes: Path, model: str) -> str:
    """`RetrainConfig.model` of a retraining: the genotype's file, or "vit"."""
    return model if model == "vit" else str(genotypes / f"{model}.json")


def retrain_settings(retrain: RetrainConfig, model: str, seed: int) -> RetrainConfig:
    return dataclasses.replace(retrain, model=model, seed=seed)


def _wall_seconds(folder: Path) -> float | None:
    path = folder / TIMES_FILE
    return _value(path, "wall_seconds", "trial times") if path.exists() else None


def _value(path: Path, name: str, what: str) -> Any:
    values = read_json(path, what)
    if not isinstance(values, dict) or name not in values:
        raise ValueError(f"{path} is no record of {what}: it has no {name!r}; delete it")
    return values[name]
