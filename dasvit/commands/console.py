"""How a command ends: one line and an exit status."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["fail", "interruptible", "of_the_system"]


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on stderr, and the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def interruptible(run: Callable[[], Any], command: str, out: Path) -> None:
    """Run; Ctrl-C and a full disk become one line with the command that continues.

    Args:
        command: `search` or `retrain`.
        out: folder of its results.
    """

    def go_on() -> str:
        if not (out / "config.json").exists():
            return "start again: nothing was begun"
        again = ["python", "-m", "dasvit", command, "--resume", str(out)]
        return f"continue with: {shlex.join(again)}"

    try:
        run()
    except KeyboardInterrupt:
        kept = "; the last epoch's checkpoint is kept" if (out / "checkpoint.pt").exists() else ""
        fail(f"stopped{kept}, {go_on()}", 130)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{of_the_system(error)}; mend that, then {go_on()}", 1)


def of_the_system(error: OSError) -> str:
    """What the system says, and of which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
