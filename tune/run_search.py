"""The main job: `python tune/run_search.py`. Sweeps, derives, retrains and ranks; see --help."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's folder first; `tune` and `dasvit` are imported from the checkout.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dasvit.commands.console import of_the_system
from dasvit.run.garbage import lasting_imports
from tune.options import parse_options
from tune.signals import sigterm_as_ctrl_c

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run a command line. Help and refusals come before PyTorch and Ray are imported.

    Returns:
        The exit status: 0 if all trials finished, 1 if some failed, 2 for bad input, 130 if it was
        interrupted.
    """
    # `--fresh` would begin again.
    again = shlex.join(["python", "tune/run_search.py", *(a for a in argv if a != "--fresh")])
    try:
        with sigterm_as_ctrl_c():
            options = parse_options(argv)
            with lasting_imports():
                from tune.phases import run
            return run(options, again)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        print(
            f'error: the Python package {name!r} is missing; pip install -e ".[tune]"',
            file=sys.stderr,
        )
        return 2
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {of_the_system(error)}; after that, continue with: {again}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nerror: interrupted; continue with: {again}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
