"""A trial's folder: its name, and what it holds when the trial has finished, failed or was stopped.

These files are the record, not Ray's: they survive restarts of any part. No Ray here.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasvit.report.events import RetrainResult, SearchResult
from dasvit.report.record import load_retrain_result, load_search_result
from dasvit.run.files import read_json

__all__ = [
    "SHORT_DIR",
    "Failure",
    "RetrainTrial",
    "SearchTrial",
    "StoppedTrial",
    "config_index",
    "find_retrainings",
    "find_searches",
    "load_result",
    "load_short",
    "read_failure",
    "read_stop",
    "retrain_dirname",
    "search_dirname",
]

RESULT_FILE = "result.json"
ERROR_FILE = "error.json"
STOP_FILE = "stopped.json"
TIMES_FILE = "times.json"
SHORT_DIR = "short_training"
"""In a search trial's folder: the training from scratch that its score is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTrial(SearchResult):
    """A finished search: one proposed configuration on one seed.

    Attributes:
        name: of its folder.
        config_index: number of the proposal.
        seed: of the search.
        wall_seconds: from the start of its Ray trial to its end; None if not measured.
        short: the short training of its encoder; None in a sweep that ranks by something else.
    """

    name: str
    config_index: int
    seed: int
    wall_seconds: float | None = None
    short: RetrainResult | None = None

    @property
    def trained_accuracy(self) -> float | None:
        """Of the derived encoder after the short training, on the images held out (ratio); all
        classes count alike."""
        return self.short.balanced_accuracy if self.short else None

    @property
    def training_seconds(self) -> float:
        """Of all its epochs, of the search and of the short training."""
        return self.seconds + (self.short.seconds if self.short else 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainTrial(RetrainResult):
    """A finished retraining.

    Attributes:
        name: of its folder.
        model: canonical hash of the genotype, or "vit".
        seed: of the retraining.
        wall_seconds: as in `SearchTrial`.
    """

    name: str
    seed: int
    wall_seconds: float | None = None

    @property
    def training_seconds(self) -> float:
        """Of all its epochs."""
        return self.seconds


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


def load_result(folder: Path, *, search: bool) -> SearchResult | RetrainResult | None:
    """The result of a search or a training, if it has finished.

    Raises:
        ValueError: a malformed result file.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    return load_search_result(path) if search else load_retrain_result(path)


def load_short(folder: Path) -> RetrainResult | None:
    """The result of the short training in a search trial's folder, if it has finished."""
    result = load_result(folder / SHORT_DIR, search=False)
    assert result is None or isinstance(result, RetrainResult)
    return result


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


def find_searches(
    trials_dir: Path, indices: Iterable[int], seeds: range, *, with_short: bool = False
) -> tuple[list[SearchTrial], list[StoppedTrial], list[Failure]]:
    """The searches of some configurations on some seeds: those that finished, those that a
    scheduler ended early, and the others.

    Args:
        with_short: a search has finished when the short training of its encoder has.
    """
    finished, stopped, left = [], [], []
    for index in indices:
        for seed in seeds:
            folder = trials_dir / search_dirname(index, seed)
            short = load_short(folder) if with_short else None
            result = load_result(folder, search=True)
            if result and (short or not with_short):
                values = _values(result, folder) | {"short": short}
                finished.append(SearchTrial(**values, config_index=index, seed=seed))
            elif stop := read_stop(folder):
                stopped.append(stop)
            else:
                left.append(read_failure(folder))
    return finished, stopped, left


def find_retrainings(
    trials_dir: Path, models: Sequence[str], seeds: range
) -> tuple[list[RetrainTrial], list[Failure]]:
    """The retrainings of some models, finished or not."""
    finished, left = [], []
    for model in models:
        for seed in seeds:
            folder = trials_dir / retrain_dirname(model, seed)
            if result := load_result(folder, search=False):
                # Its own name of the model is a file's path.
                values = _values(result, folder) | {"model": model, "seed": seed}
                finished.append(RetrainTrial(**values))
            else:
                left.append(read_failure(folder))
    return finished, left


def _values(result: SearchResult | RetrainResult, folder: Path) -> dict[str, Any]:
    times = folder / TIMES_FILE
    wall = _value(times, "wall_seconds", "trial times") if times.exists() else None
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return values | {"name": folder.name, "wall_seconds": wall}


def _value(path: Path, name: str, what: str) -> Any:
    values = read_json(path, what)
    if not isinstance(values, dict) or name not in values:
        raise ValueError(f"{path} is no record of {what}: it has no {name!r}; delete it")
    return values[name]
