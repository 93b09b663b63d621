"""How a command ends: one line and an exit status."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["fail", "interruptible"]


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on stderr, and the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def interruptible(run: Callable[[], Any], again: str) -> None:
    """Run; Ctrl-C becomes one line with the command that continues."""
    try:
        run()
    except KeyboardInterrupt:
        fail(f"stopped; the last epoch's checkpoint is kept, continue with: {again}", 130)
