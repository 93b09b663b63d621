"""How a command ends: one line and an exit status."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

__all__ = ["fail", "interruptible", "of_the_system", "program", "told"]


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on stderr, and the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


@contextmanager
def interruptible(command: str, out: Path) -> Iterator[None]:
    """Ctrl-C and a full disk end a run with one line: the command that continues it.

    Args:
        command: `search` or `retrain`.
        out: folder of its results.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = "; the last epoch's checkpoint is kept" if (out / "checkpoint.pt").exists() else ""
        fail(f"stopped{kept}, {_way_on(command, out)}", 130)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{of_the_system(error)}; mend that, then {_way_on(command, out)}", 1)


def told(line: str) -> None:
    """Say on stderr what is being done."""
    print(f"{line} …", file=sys.stderr, flush=True)


def program() -> str:
    """How this program was called."""
    return "dasvit" if Path(sys.argv[0]).name == "dasvit" else "python -m dasvit"


def _way_on(command: str, out: Path) -> str:
    if not (out / "config.json").exists():
        return "start again: nothing was begun"
    return f"continue with: {program()} {command} --resume {shlex.quote(str(out))}"


def of_the_system(error: OSError) -> str:
    """What the system says, and of which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
