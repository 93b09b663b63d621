"""sweep.json: what a sweep computes, and every run of its command with its times."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from dasvit.run.environment import environment
from tune.cluster import Demand
from tune.folder import ResultFolder
from tune.report.gather import wall_of

__all__ = ["SweepRecord"]


class SweepRecord:
    """The sweep's file, read at the start of a run and written as the run proceeds.

    Args:
        folder: of the sweep.
        settings: what it computes; `open_folder` has compared them with the file's.
        command: as the user can repeat it.
    """

    def __init__(self, folder: ResultFolder, settings: dict[str, Any], command: str) -> None:
        self._folder = folder
        self._values = folder.read() or {"settings": settings, "lag": None, "runs": []}
        self._run: dict[str, Any] = {
            "command": command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def begin(self, need: Demand, lag: int) -> int:
        """A run that computes starts; the lag that counts is the first run's."""
        if self._values["lag"] is None:
            self._values["lag"] = lag
        self._run |= {
            "environment": environment(),
            "device": need.device,
            "cpus_per_trial": need.cpus,
            "gpus_per_trial": need.gpus,
            "concurrent_trials": need.concurrent,
        }
        self._values["runs"].append(self._run)
        self.save()
        return self._values["lag"]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, also one that is interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = time.monotonic() - started
            self.save()

    def save(self) -> None:
        """Write the file; a run that computed nothing leaves it as it is."""
        if self._run in self._values["runs"]:
            total = time.monotonic() - self._started
            other = total - sum(self._seconds.values())
            self._run["wall_seconds"] = {**self._seconds, "other": other, "total": total}
            self._folder.write({k: v for k, v in self._values.items() if k != "schema"})

    def wall(self) -> dict[str, float]:
        """See `wall_of`."""
        return wall_of(self._values["runs"])
