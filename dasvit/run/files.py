"""Reading and writing files so that a crash or bad input loses nothing."""

import glob
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = [
    "atomic_file",
    "check_free_space",
    "first_line",
    "read_json",
    "remove_unfinished",
    "replace_folder",
    "write_atomic",
]


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file: a crash at any moment leaves the old file or the new one, never half."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """As `write_atomic`, for what is written in pieces: the file is there when the context ends."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder under a temporary name, then put it in place of what is there.

    Raises:
        ValueError: it cannot be written; what was there is left as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    try:
        fresh.mkdir(parents=True)
        fill(fresh)
        for file in filter(Path.is_file, fresh.rglob("*")):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise ValueError(f"cannot write {path} ({error}); free some disk or rights") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of a file that they were writing with `atomic_file`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def check_free_space(path: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        path: where files will go; need not exist yet.
        needed: bytes.

    Raises:
        ValueError: naming both numbers.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"{path} needs {needed / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free; free "
            "some, or choose another place"
        )


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: naming `what` and the file if it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{what}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{what}: cannot read {path}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{what}: {path} is not valid JSON ({error}); is it truncated?") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second where the first ends in a colon; the
    name of its type where there is no message."""
    first, *more = str(error).splitlines() or [""]
    if first.endswith(":") and more:
        first = textwrap.shorten(f"{first} {more[0]}", 200, placeholder=" …")
    return first or type(error).__name__
