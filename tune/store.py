"""The result folder of a sweep: what lies where, who may write, whose it is, and its record of
every run of the command. No Ray."""

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dasvit.run.environment import environment
from dasvit.run.files import read_json, write_atomic
from dasvit.run.settings import differences, with_defaults

__all__ = ["PHASES", "SCHEMA", "ResultFolder", "SweepRecord", "open_folder", "set_aside", "wall_of"]

SCHEMA = "dasvit/sweep/2"

PHASES = ("search", "ladder", "retraining")

GROWS = ("num_samples", "seeds", "retrain_top", "retrain_seeds", "random_baseline", "proposals")
"""Settings that the same command may give anew, larger: the sweep goes on from what there is."""

NEWER: dict[str, Any] = {
    "proposals": 0,
    "methods": [],
    "search": {"select": "alpha", "select_epochs": 1, "monitor": "none"},
}
"""What a sweep had whose file does not name these settings."""

SHOWN_DIFFERENCES = 12


@dataclass(frozen=True, slots=True)
class ResultFolder:
    """Paths of a sweep's results."""

    root: Path

    @property
    def sweep_file(self) -> Path:
        return self.root / "sweep.json"

    @property
    def search_dir(self) -> Path:
        return self.root / "search"

    def rung_dir(self, epochs: int) -> Path:
        """The trainings of a rung of the ladder."""
        return self.root / "ladder" / f"{epochs}_epochs"

    @property
    def retrain_dir(self) -> Path:
        return self.root / "retrain"

    @property
    def genotypes_dir(self) -> Path:
        return self.root / "genotypes"

    @property
    def best_dir(self) -> Path:
        return self.root / "best"

    @property
    def ray_root(self) -> Path:
        """Ray's own record of every run of the command, which Ray's tools open."""
        return self.root / "ray"

    @property
    def study_file(self) -> Path:
        """The proposals, in Optuna's own storage."""
        return self.root / "optuna.journal"

    def read(self) -> dict[str, Any] | None:
        """The contents of sweep.json, or None before the first run.

        Raises:
            ValueError: the file is there but is not a sweep's.
        """
        if not self.sweep_file.exists():
            return None
        values = read_json(self.sweep_file, "result folder")
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(
                f"{self.sweep_file} is no sweep's record (schema {SCHEMA}); choose another --name"
            )
        return values

    def write(self, values: dict[str, Any]) -> None:
        write_atomic(self.sweep_file, json.dumps({"schema": SCHEMA, **values}, indent=2) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one run at a time writes here.

        Raises:
            ValueError: another one does.
        """
        path = self.root / ".lock"
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another run is writing to {self.root}; wait for it or choose another --name"
                ) from None
            try:
                yield
            finally:
                # A run that was refused before it computed anything leaves nothing behind.
                if self.root.is_dir() and list(self.root.iterdir()) == [path]:
                    path.unlink()
                    self.root.rmdir()


def open_folder(
    storage_path: str,
    name: str,
    settings: dict[str, Any],
    *,
    resume: bool = False,
) -> ResultFolder:
    """The folder of a sweep: empty, or the same sweep's from before. Nothing in it is changed.

    Args:
        storage_path: made if missing; must be shared by all nodes of a cluster.
        name: of the folder inside.
        settings: what the sweep computes, JSON-ready; a folder with others is refused, but for
            more of what `GROWS` names.
        resume: insist that the sweep is there.

    Raises:
        ValueError: cannot write there, or it holds something else, or nothing to resume.
    """
    folder = _folder(storage_path, name)
    saved = folder.read()
    if saved is None and resume:
        raise ValueError(
            f"--resume: {folder.root} holds no sweep; check --name and --storage-path, or leave "
            "--resume away to start one"
        )
    if saved is None and folder.root.is_dir():
        others = sorted(p.name for p in folder.root.iterdir() if p.name != ".lock")
        if others:
            raise ValueError(
                f"{folder.root} holds something else ({', '.join(others[:3])}"
                f"{', …' if len(others) > 3 else ''}); choose another --name"
            )
    if saved is not None:
        _check_same(saved.get("settings", {}), settings, folder.root)
    _check_writable(folder.root)
    return folder


def set_aside(storage_path: str, name: str) -> Path | None:
    """Rename a sweep's folder to its name and the time; the new path, or None without a sweep.

    Raises:
        ValueError: a run is writing there, or it cannot be renamed.
    """
    folder = _folder(storage_path, name)
    if folder.read() is None:
        return None
    aside = folder.root.with_name(f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    try:
        if aside.exists():
            raise FileExistsError(0, f"{aside} exists")
        with folder.lock():
            folder.root.rename(aside)
    except OSError as error:
        raise ValueError(f"--fresh: cannot move {folder.root} aside ({error.strerror})") from None
    return aside


def _folder(storage_path: str, name: str) -> ResultFolder:
    """A sweep's folder by its name; refused where it can be none."""
    if "://" in storage_path:
        raise ValueError(
            f"--storage-path {storage_path}: checkpoints need a folder that all nodes share (NFS, "
            "EFS, FSx); mount it, and copy the results to a bucket afterwards"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"--name {name!r} must be one folder name of letters, digits, '.', '_' and '-'"
        )
    folder = ResultFolder(Path(storage_path).expanduser().resolve() / name)
    if folder.root.exists() and not folder.root.is_dir():
        raise ValueError(f"{folder.root} is a file; choose another --name or --storage-path")
    return folder


def _check_same(saved: dict[str, Any], settings: dict[str, Any], root: Path) -> None:
    wanted = json.loads(json.dumps(settings))
    saved = with_defaults(saved, _of(NEWER, wanted))
    # More of what is there already is the same sweep, extended.
    for name in GROWS:
        if name in saved and isinstance(saved[name], int) and saved[name] <= wanted.get(name, 0):
            saved = saved | {name: wanted[name]}
    others = differences(saved, wanted)
    if others:
        shown = "; ".join(others[:SHOWN_DIFFERENCES])
        if (more := len(others) - SHOWN_DIFFERENCES) > 0:
            shown += f"; and {more} more"
        raise ValueError(
            f"{root} holds a sweep with other settings ({shown}); repeat its command to continue "
            "it, with larger numbers of samples or seeds to extend it, choose another --name, or "
            "set it aside by --fresh"
        )


def _of(defaults: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Those of the defaults that settings have."""
    return {
        name: _of(value, wanted[name]) if isinstance(value, dict) else value
        for name, value in defaults.items()
        if name in wanted
    }


def _check_writable(root: Path) -> None:
    probe = root / f".probe.{os.getpid()}"
    made = [p for p in (root, *root.parents) if not p.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise ValueError(
            f"--storage-path: cannot write to {root} ({error.strerror}); choose another folder"
        ) from None


class SweepRecord:
    """The sweep's file, read at the start of a run and written as the run proceeds.

    Args:
        folder: of the sweep.
        settings: what it computes; `open_folder` has compared them with the file's.
        command: as the user can repeat it.
    """

    def __init__(self, folder: ResultFolder, settings: dict[str, Any], command: str) -> None:
        self._folder = folder
        # The same sweep, or one that has become larger.
        start: dict[str, Any] = {"lag": None, "runs": []}
        self._values = start | (folder.read() or {}) | {"settings": settings}
        self._run: dict[str, Any] = {
            "command": command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    def begin(self, machine: dict[str, Any], lag: int) -> int:
        """A run that computes starts.

        Args:
            machine: what a trial takes, and how many run at a time.
            lag: see `tune.searcher`; the first run's counts.
        """
        if self._values["lag"] is None:
            self._values["lag"] = lag
        self._run |= {"environment": environment(), **machine}
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


def wall_of(runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds of all runs together, and the last one's trials at a time."""
    runs = [run for run in runs if "wall_seconds" in run]
    if not runs:
        return {}
    parts = (*PHASES, "other", "total")
    sums = {part: sum(run["wall_seconds"].get(part, 0.0) for run in runs) for part in parts}
    return {**sums, "concurrent": runs[-1]["concurrent_trials"]}
