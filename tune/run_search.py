"""The main job: `python tune/run_search.py`. Sweeps, derives, retrains and ranks; see --help."""

import sys
from pathlib import Path

# Python puts this file's folder first; `tune` and `dasvit` are imported from the checkout's root.
sys.path[0] = str(Path(__file__).resolve().parent.parent)


def main() -> int:
    """Exit status: 0 if all trials finished, 1 if some failed, 2 bad input, 130 interrupted."""
    from dasvit.run.garbage import lasting_imports

    try:
        with lasting_imports():
            from tune.main import main as run
    except ModuleNotFoundError as error:
        print(
            f'error: the Python package {error.name!r} is missing; pip install -e ".[tune]"',
            file=sys.stderr,
        )
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
