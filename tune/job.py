"""One trial's work as a value that travels from Tune's trial to Ray Train's worker. No Ray."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasvit.report.events import RetrainResult, SearchResult
from dasvit.report.record import load_retrain_result, load_search_result
from dasvit.run.files import read_json, write_atomic
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig
from tune.cluster import Demand
from tune.trials import ERROR_FILE, STOP_FILE, TIMES_FILE, StoppedTrial, read_stop

__all__ = ["Job", "JobError", "last_line"]

_SEARCH_TRACE, _RETRAIN_TRACE = "alpha.jsonl", "train.jsonl"
_MARKS_FILE = "worker_times.json"


class JobError(Exception):
    """A job's failure that would come again: no restart helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A search or a retraining, and where its files go.

    Attributes:
        config: what to compute; its type says which.
        name: of the trial's folder.
        trials_dir: that folder's parent, on storage that all nodes share.
        ray_dir: for Ray's own records.
        demand: what the worker gets.
    """

    config: SearchConfig | RetrainConfig
    name: str
    trials_dir: Path
    ray_dir: Path
    demand: Demand

    @property
    def folder(self) -> Path:
        return self.trials_dir / self.name

    @property
    def trace(self) -> Path:
        """The worker's record of epochs, a JSON line each."""
        search = isinstance(self.config, SearchConfig)
        return self.folder / (_SEARCH_TRACE if search else _RETRAIN_TRACE)

    def result(self) -> SearchResult | RetrainResult | None:
        """What the worker left, if it has finished."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        search = isinstance(self.config, SearchConfig)
        return load_search_result(path) if search else load_retrain_result(path)

    def failed(self) -> bool:
        return (self.folder / ERROR_FILE).exists()

    def forget_failure(self) -> None:
        (self.folder / ERROR_FILE).unlink(missing_ok=True)

    def record_failure(self, message: str) -> None:
        """Keep why there is no result, for the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"error": message}, indent=2) + "\n"
        write_atomic(self.folder / ERROR_FILE, text)

    def stopped(self) -> StoppedTrial | None:
        """How the scheduler ended it early, if it did and no result was there yet."""
        return None if self.result() else read_stop(self.folder)

    def record_stop(self, *, epochs: int, score: float) -> None:
        """Keep that the scheduler ended this search after so many epochs."""
        assert isinstance(self.config, SearchConfig)
        if (self.folder / STOP_FILE).exists():
            return
        values = {
            "epochs": epochs,
            "total_epochs": self.config.total_epochs,
            "score": score,
            "settings": self.config.outer_settings,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / STOP_FILE, json.dumps(values, indent=2) + "\n")

    def record_worker(self, *, began: float, imported: float, ended: float) -> None:
        """Keep when the worker began, had imported what it runs, and ended (`time.time()`)."""
        marks = {"began": began, "imported": imported, "ended": ended}
        write_atomic(self.folder / _MARKS_FILE, json.dumps(marks) + "\n")

    def record_times(self, *, started: float, ended: float, seconds: float) -> None:
        """Keep how long the whole trial took, its epochs, and the parts of what is beyond them.

        Args:
            started, ended: of the trial (`time.time()`).
            seconds: of its epochs.
        """
        times: dict[str, Any] = {"wall_seconds": ended - started, "seconds": seconds}
        path = self.folder / _MARKS_FILE
        if path.exists():
            worker = read_json(path, "worker's times")
            times["parts"] = {
                "start": worker["began"] - started,
                "import": worker["imported"] - worker["began"],
                "other": worker["ended"] - worker["imported"] - seconds,
                "end": ended - worker["ended"],
            }
        write_atomic(self.folder / TIMES_FILE, json.dumps(times, indent=2) + "\n")


def last_line(message: str, kind: type[BaseException] | None = None) -> str:
    """The last line of an error's text, which holds what happened; with the name of one of
    Python's own kinds, whose text alone may say little."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if kind is not None and (kind.__module__ == "builtins" or not last):
        return ": ".join(filter(None, (kind.__name__, last)))
    return last
