"""How a benchmark's command ends. Not `dasvit.commands`' way, which imports all that they need."""

import sys
from collections.abc import Callable

__all__ = ["run_command"]


def run_command(run: Callable[[list[str]], None]) -> None:
    """Run with the command line's arguments; bad input is one line on stderr, and status 2, what
    the system refuses (a full disk, say) one line, and status 1."""
    try:
        run(sys.argv[1:])
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
