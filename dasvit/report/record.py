"""The run's own record: one JSON line per epoch, and the result as JSON."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from dasvit.report.events import Event, RetrainEpoch, RetrainResult, SearchEpoch, SearchResult
from dasvit.run.files import read_json, write_atomic
from dasvit.spaces.cell.genotype import Genotype

__all__ = [
    "JsonLinesReport",
    "load_retrain_result",
    "load_search_result",
    "read_trace",
    "save_result",
]


class JsonLinesReport:
    """Appends every epoch event to a file, one JSON object per line (nan as null).

    Args:
        path: the file; rows at or after `start_epoch` (an interrupted epoch's) are dropped.
    """

    def __init__(self, path: Path, *, start_epoch: int = 0) -> None:
        self._path = path
        kept = [row for row in read_trace(path) if row["epoch"] < start_epoch]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))

    def __call__(self, event: Event) -> None:
        if isinstance(event, SearchEpoch | RetrainEpoch):
            row = {k: _plain(v) for k, v in dataclasses.asdict(event).items()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The rows of a `JsonLinesReport` file, oldest first; a torn last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the process ended while writing it
            break
    return rows


def save_result(path: Path, result: SearchResult | RetrainResult) -> None:
    """Write a result as JSON, atomically; its presence marks the run as finished."""
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    if isinstance(result, SearchResult):
        values |= {"genotype": result.genotype.to_dict(), "gap": result.gap}
        values["proposals"] = [genotype.to_dict() for genotype in result.proposals]
    text = json.dumps(values, indent=2)
    rows = re.sub(r"\[\n[\d,\s]+\]", lambda row: " ".join(row[0].split()), text)  # of a matrix
    write_atomic(path, rows + "\n")


def load_search_result(path: Path) -> SearchResult:
    """The inverse of `save_result`.

    Raises:
        ValueError: missing or malformed.
    """
    values = read_json(path, "search result")
    try:
        values.pop("gap")
        genotype = Genotype.from_dict(values.pop("genotype"), where=str(path))
        others = [Genotype.from_dict(one, where=str(path)) for one in values.pop("proposals", ())]
        return SearchResult(genotype=genotype, proposals=tuple(others), **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a search result ({error})") from None


def load_retrain_result(path: Path) -> RetrainResult:
    """The inverse of `save_result`.

    Raises:
        ValueError: missing or malformed.
    """
    values = read_json(path, "retraining result")
    try:
        return RetrainResult(**values)
    except TypeError as error:
        raise ValueError(f"{path} is not a retraining result ({error})") from None
