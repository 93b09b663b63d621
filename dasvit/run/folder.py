"""The folder of a run: one run each, marked by its config.json; never another run's."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasvit.run.files import read_json, write_atomic
from dasvit.run.settings import differences, with_defaults

__all__ = ["SkippedImagesWarning", "check_folder", "note_skipped", "open_folder", "read_settings"]

# What an attempt that ended before it was marked can leave behind.
_LEFTOVERS = ("events.out.tfevents.*", "*.log", ".*.tmp")
_RUNS = {
    "dasvit/search": ("a search", "search"),
    "dasvit/retrain": ("a retraining", "retrain"),
}


class SkippedImagesWarning(UserWarning):
    """Images that cannot be read are left out."""


def read_settings(folder: str | Path, kind: str) -> dict[str, Any]:
    """The settings of the run in a folder.

    Raises:
        ValueError: the folder holds no run of this kind.
    """
    path = Path(folder) / "config.json"
    values = read_json(path, "run folder")
    found = values.get("kind") if isinstance(values, dict) else None
    name = str(found).rpartition("/")[0]
    if name in _RUNS and name != kind.rpartition("/")[0]:
        what, command = _RUNS[name]
        raise ValueError(f"{folder} holds {what}, continued by: dasvit {command} --resume {folder}")
    if found != kind or not isinstance(values.get("config"), dict):
        raise ValueError(f"{path} is of kind {found!r}, not {kind!r}")
    return values["config"]


def check_folder(
    folder: Path,
    kind: str,
    settings: dict[str, Any],
    *,
    defaults: dict[str, Any],
    resume: bool,
) -> None:
    """Whether a run may use a folder: a new one, or with `resume` the one that holds this run.

    Args:
        defaults: stand for settings that the version which began the run did not know.

    Raises:
        ValueError: it holds a run, or one with other settings, or something else, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder")
    if (folder / "config.json").exists():
        if not resume:
            raise ValueError(f"{folder} holds a run already; resume it or choose another folder")
        saved = with_defaults(read_settings(folder, kind), defaults)
        if others := differences(saved, settings):
            raise ValueError(
                f"{folder} holds a run with other settings ({'; '.join(others)}); "
                "continue it with its own settings or choose another folder"
            )
    elif folder.is_dir():
        names = sorted(
            path.name for path in folder.iterdir() if not any(map(path.match, _LEFTOVERS))
        )
        if names:
            raise ValueError(
                f"{folder} holds something else ({names[0]}); choose a new or an empty folder"
            )


def open_folder(folder: Path, kind: str, settings: dict[str, Any]) -> None:
    """Make a run's folder and mark it, after `check_folder` and all else that can be refused.

    Raises:
        ValueError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"kind": kind, "config": settings}, indent=2) + "\n"
        write_atomic(folder / "config.json", text)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error}); choose another folder") from None


def note_skipped(folder: Path, skipped: Sequence[str]) -> None:
    """Name the images that a run goes without: the first in a warning, all in
    skipped_images.txt.

    Raises:
        ValueError: the run began with other ones, so its batches would be others.
    """
    path = folder / "skipped_images.txt"
    text = "".join(f"{name}\n" for name in skipped)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if (folder / "checkpoint.pt").exists() and text != before:
        raise ValueError(
            f"{folder}: other images can be read now than when this run began (see {path}); mend "
            "the data set, or start a new run"
        )
    if not skipped:
        return
    write_atomic(path, text)
    shown = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
    warnings.warn(
        f"{len(skipped)} unreadable images are left out ({shown}); all are listed in {path}",
        SkippedImagesWarning,
        stacklevel=2,
    )
