"""The main job: `python tune/run_search.py`. Sweeps, derives, retrains and ranks; see --help."""

import io
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's folder first; `tune` and `dasvit` are imported from the checkout.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dasvit.commands.console import of_the_system
from dasvit.run.garbage import lasting_imports
from tune.cluster import prepare
from tune.options import parse_options
from tune.signals import stoppable

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run a command line. Help and refusals come before PyTorch and Ray are imported.

    Returns:
        The exit status: 0 if all trials finished, 1 if some failed, 2 for bad input, 130 if it was
        interrupted; SIGTERM ends the process with 143.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without × or … shows ?
        sys.stdout.reconfigure(errors="replace")
    again = _command(argv)
    try:
        with stoppable(again):
            options = parse_options(argv)
            prepare(options.address)
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


def _command(argv: Sequence[str]) -> str:
    """What continues the sweep, from the folder where it runs; `--fresh` would begin again."""
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    script, here = Path(__file__).resolve(), Path.cwd()
    script = script.relative_to(here) if script.is_relative_to(here) else script
    return shlex.join([python, str(script), *(a for a in argv if a != "--fresh")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
