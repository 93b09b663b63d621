"""The result folder of a sweep: what lies where, who may write, and whose it is."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasvit.files import read_json, write_atomic

__all__ = ["SCHEMA", "ResultFolder", "open_folder"]

SCHEMA = "dasvit/sweep/1"


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
        """Ray's own records: of use while a run lasts."""
        return self.root / "ray"

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
                if list(self.root.iterdir()) == [path]:
                    path.unlink()
                    self.root.rmdir()

    def remove_ray_records(self) -> None:
        shutil.rmtree(self.ray_root, ignore_errors=True)


def open_folder(storage_path: str, name: str, settings: dict[str, Any]) -> ResultFolder:
    """The folder of a sweep: empty, or the same sweep's from before. Nothing in it is changed.

    Args:
        storage_path: made if missing; must be shared by all nodes of a cluster.
        name: of the folder inside.
        settings: what the sweep computes, JSON-ready; a folder with others is refused.

    Raises:
        ValueError: cannot write there, or it holds something else.
    """
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
    saved = folder.read()
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


def _check_same(saved: dict[str, Any], settings: dict[str, Any], root: Path) -> None:
    old, new = dict(_flat(saved)), dict(_flat(json.loads(json.dumps(settings))))
    differences = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]
    if differences:
        shown = "; ".join(differences[:4]) + ("; …" if len(differences) > 4 else "")
        raise ValueError(
            f"{root} holds a sweep with other settings ({shown}); repeat its command to continue "
            "it, or choose another --name"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


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
