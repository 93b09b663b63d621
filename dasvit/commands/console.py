"""How a command ends: one line and an exit status."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["fail", "interruptible", "of_the_system"]


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on stderr, and the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def interruptible(run: Callable[[], Any], again: str) -> None:
    """Run; Ctrl-C and a full disk become one line with the command that continues."""
    try:
        run()
    except KeyboardInterrupt:
        fail(f"stopped; the last epoch's checkpoint is kept, continue with: {again}", 130)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{of_the_system(error)}; mend that, then continue with: {again}", 1)


def of_the_system(error: OSError) -> str:
    """What the system says, and of which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
