"""Finished retrainings, read back from their folders and put together over seeds."""

import itertools
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasvit.report.events import RetrainResult
from dasvit.report.record import load_retrain_result
from dasvit.run.files import read_json
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Genotype
from dasvit.training.config import RetrainConfig
from dasvit.training.model_folder import RETRAIN_KIND, load_retrain_config

__all__ = ["Run", "Scores", "find_runs", "group_runs"]

_ELSEWHERE = ("data_dir", "download", "num_workers")
"""Settings of the data that say where and how it is read, not what is learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One finished retraining.

    Attributes:
        folder: that holds it.
        config: its settings. result: its test.
        encoder: canonical hash of a derived network's genotype, None for other networks.
    """

    folder: Path
    config: RetrainConfig
    result: RetrainResult
    encoder: str | None

    @property
    def recipe(self) -> dict[str, Any]:
        """All settings but the seed and where the data lies; an encoder by its hash, not its
        path."""
        settings = config_to_dict(self.config)
        del settings["seed"]
        settings["data"] = {k: v for k, v in settings["data"].items() if k not in _ELSEWHERE}
        return settings | {"model": self.encoder or self.config.model}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Test accuracies (ratios) of retrainings that differ in the seed alone.

    Attributes:
        runs: by seed.
    """

    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.config.seed for run in self.runs)

    @property
    def top1(self) -> tuple[float, float | None]:
        """Mean and sample standard deviation; None for one seed."""
        return _mean_and_std([run.result.test_top1 for run in self.runs])

    @property
    def top5(self) -> tuple[float, float | None]:
        """As `top1`."""
        return _mean_and_std([run.result.test_top5 for run in self.runs])


def _mean_and_std(values: list[float]) -> tuple[float, float | None]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Every finished retraining in the folders and below them, each once, by path.

    Searches and unfinished retrainings are left out.

    Raises:
        ValueError: a folder that is not there or holds none, or files that are malformed.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"--results: there is no folder {folder}")
        below = {
            path.parent.resolve(): _read(path.parent)
            for path in sorted(folder.rglob("result.json"))
            if _is_retraining(path.with_name("config.json"))
        }
        if not below:
            raise ValueError(
                f"--results: no finished retraining in {folder} (config.json and result.json)"
            )
        found |= below
    return [found[path] for path in sorted(found)]


def _is_retraining(path: Path) -> bool:
    if not path.exists():
        return False
    values = read_json(path, "run folder")
    return isinstance(values, dict) and values.get("kind") == RETRAIN_KIND


def _read(folder: Path) -> Run:
    config = load_retrain_config(folder)
    own = folder / "genotype.json"
    genotype = Genotype.load(own) if own.exists() else NAMED_GENOTYPES.get(config.model)
    return Run(
        folder=folder,
        config=config,
        result=load_retrain_result(folder / "result.json"),
        encoder=genotype.canonical_hash if genotype else None,
    )


def group_runs(runs: Iterable[Run]) -> list[Scores]:
    """Put runs of one recipe together.

    Raises:
        ValueError: two of them have the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.recipe, sort_keys=True), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.config.seed)
        for one, other in itertools.pairwise(group):
            if one.config.seed == other.config.seed:
                raise ValueError(
                    f"{one.folder} and {other.folder} are the same retraining with the same seed "
                    f"{one.config.seed}; give one of them"
                )
    return [Scores(runs=tuple(group)) for group in groups.values()]
