"""From a trial's own record to Tune: each epoch once, as it appears in the trial's folder."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dasvit.report.record import read_trace

__all__ = ["EpochRelay", "replay"]

LOOK_SECONDS = 1.0


class EpochRelay:
    """While the block runs, reports the epochs that a worker writes down.

    Ray's own way from a Train worker to Tune is a queue, for which every trial starts one more
    process; and it has the worker wait at each report for its controller.

    Args:
        trace: the worker's JSON lines (`dasvit.report.record.JsonLinesReport`), a line an epoch.
        report: `ray.tune.report`.
        seconds: between two looks at the file.
    """

    def __init__(
        self,
        trace: Path,
        report: Callable[[dict[str, Any]], None],
        *,
        seconds: float = LOOK_SECONDS,
    ) -> None:
        self._trace, self._report, self._seconds = trace, report, seconds
        self._reported = -1  # the last epoch that Tune knows
        self._end = threading.Event()
        # A daemon: Tune stops a trial in the middle of a report, which then never returns.
        self._thread = threading.Thread(target=self._run, name="epochs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            for row in read_trace(self._trace):
                if row["epoch"] > self._reported and not self._end.is_set():
                    self._report(_metrics(row))
                    self._reported = row["epoch"]


def replay(trace: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Report all epochs of a trial that ran before, for a scheduler that compares by epoch."""
    for row in read_trace(trace):
        report(_metrics(row))


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an epoch; "epoch" counts the finished ones."""
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
    done = row["epoch"] + 1
    if row.get("val_accuracy") is not None:  # of a search: by the name that its result will have
        numbers["supernet_accuracy"] = row["val_accuracy"]
    # Tune counts reports anew after a restart; epochs stay what they are.
    return {**numbers, "epoch": done, "timesteps_total": done}
