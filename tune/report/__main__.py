"""Rebuild a sweep's results from its trials: `python -m tune.report RUN_DIR`.

Writes leaderboard.md, leaderboard.csv, genotypes.json, best/ and report.html anew, whatever state
the sweep is in. Trains nothing and needs no Ray.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = "usage: python -m tune.report RUN_DIR"


def rebuild(root: Path) -> Path:
    """Write the results of the sweep in `root` anew; the path of report.html.

    Raises:
        ValueError: no sweep there, one that is being run, or one without a finished trial.
    """
    from dasvit.commands.arguments import preset_from_argv
    from dasvit.presets import DEFAULT_PRESET
    from dasvit.run.plugins import load_plugins
    from tune.plan import Plan
    from tune.report.outcome import gather
    from tune.report.results import write_results
    from tune.store import ResultFolder, wall_of

    folder = ResultFolder(root.expanduser().resolve())
    values = folder.read() if folder.root.is_dir() else None
    if values is None:
        raise ValueError(f"{root} holds no sweep (there is no sweep.json); give a sweep's folder")
    plan = Plan.from_dict(values.get("settings", {}))
    runs = values.get("runs", [])
    command = shlex.split(runs[-1]["command"]) if runs else []
    preset = preset_from_argv(command, DEFAULT_PRESET).name
    load_plugins(plan.search.plugins)
    with folder.lock():
        outcome = gather(plan, folder, name=folder.root.name, wall=wall_of(runs))
        if not (outcome.search or outcome.retrained):
            raise ValueError(f"{root}: no trial of this sweep has finished yet")
        write_results(outcome, folder, preset=preset)
    return folder.root / "report.html"


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 written, 2 bad input."""
    if list(argv) in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    if len(argv) != 1 or argv[0].startswith("-"):
        print(f"error: one folder is needed; {USAGE}", file=sys.stderr)
        return 2
    try:
        print(rebuild(Path(argv[0])))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
