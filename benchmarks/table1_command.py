"""`table1`: the paper's Table I, with our counts and results beside it."""

import json
import sys
from dataclasses import dataclass

from benchmarks.table1 import IMAGE_SIZE, count_rows, fill_cells
from benchmarks.table1_report import to_csv, to_markdown, to_values
from benchmarks.table1_results import find_runs, group_runs
from dasvit.run.environment import environment
from dasvit.run.settings import SettingError

__all__ = ["Table1Args", "run"]

MAX_CLASSES = 10**6


@dataclass(frozen=True, kw_only=True)
class Table1Args:
    """The paper's Table I with our counts beside it, and our accuracies where there are results.

    All networks are counted anew, about a second each; nothing is trained. Results are found in the
    folders and below them, and matched by network, size and data set.
    Example: python -m dasvit table1 --results runs
    """

    results: tuple[str, ...] = ()
    """Folders of finished retrainings; accuracies without one are `not run`."""
    num_classes: int = 100
    """Outputs of the heads that are counted: 10 for CIFAR-10, 100 for the others."""
    json: bool = False
    """Print JSON."""
    csv: bool = False
    """Print CSV."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= MAX_CLASSES:
            raise SettingError(
                f"--num-classes must be 1 to {MAX_CLASSES}, but got {self.num_classes}"
            )
        if self.json and self.csv:
            raise SettingError("--json and --csv exclude each other; give one of them")


def run(args: Table1Args) -> None:
    scores = group_runs(find_runs(args.results))
    cells, others = fill_cells(scores)

    def progress(name: str) -> None:
        print(f"counting {name} …", file=sys.stderr, flush=True)

    counted = count_rows(args.num_classes, progress=progress)
    if args.json:
        left = [
            {
                "model": one.runs[0].config.model,
                "dataset": one.runs[0].config.data.dataset,
                "image_size": one.runs[0].config.data.image_size,
                "seeds": one.seeds,
                "folders": [str(run.folder) for run in one.runs],
            }
            for one in others
        ]
        values = {
            "num_classes": args.num_classes,
            "image_size": IMAGE_SIZE,
            "rows": to_values(counted, cells),
            "other_results": left,
            "environment": environment(),
        }
        print(json.dumps(values))
    elif args.csv:
        print(to_csv(counted, cells), end="")
    else:
        print(to_markdown(counted, cells, others, args.num_classes))
