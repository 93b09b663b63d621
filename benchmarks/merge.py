"""Results of several runs of `search_step.py` as one: stages, token ratios, batches and orders that
were measured apart, on one machine, with the same settings.

    python benchmarks/merge.py 1.json 2.json 3.json --evaluation graphed.json --out all.json
"""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.checks import check_out
from benchmarks.command import run_command
from benchmarks.facts import read_results
from benchmarks.projection import project
from benchmarks.workload import Cell, Sizes
from dasvit.commands.arguments import Arg, parse
from dasvit.run.files import write_atomic
from dasvit.run.settings import require

__all__ = ["merge"]

PARTS = ("stages", "ratios", "batches", "orders")
"""What of a plan may differ between runs, and adds up."""
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Merge results of several runs of search_step.py.

    Example: python benchmarks/merge.py 1.json 2.json 3.json --out all.json
    """

    files: Annotated[tuple[Path, ...], Arg(positional=True)]
    """Results of the runs."""
    out: Path
    """The results as one."""
    evaluation: Path | None = None
    """Results with a whole search's projection, of the same machine, sizes and precision: what they
    say of all but steps and starts goes into that of the merged ones."""


def merge(runs: Sequence[tuple[str, Facts]], evaluation: Facts | None = None) -> Facts:
    """One dictionary of results.

    Args:
        runs: names and results; rows keep this order.
        evaluation: results whose projection's parts beside the steps are taken.

    Raises:
        ValueError: runs of other machines, versions, commits or settings, of code that differed
            from its commit or of processes at once, a row measured twice, or an `evaluation`
            that does not fit.
    """
    require(len(runs) >= 2, f"merging takes at least two files, but got {len(runs)}")
    first_name, first = runs[0]
    commit = first["environment"]["git_commit"] or ""
    require(not commit.endswith("-dirty"), f"{first_name} is of code that differs from its commit")
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], str] = {}
    for name, facts in runs:
        _check_alike(facts, name, first, first_name, besides=PARTS)
        require("processes" not in facts, f"{name} is of processes at once, which add up to none")
        for row in facts["rows"]:
            key = tuple(row[k] for k in ("stage", "token_ratio", "batch_size", "order"))
            key += (row["variant"], row["precision"])
            require(key not in seen, f"{name} and {seen.get(key)} both have the row {key}")
            seen[key] = name
            rows.append(row)
    plan = dict(first["plan"])
    for part in PARTS:
        plan[part] = list(dict.fromkeys(v for _, facts in runs for v in facts["plan"][part]))
    found = {
        **{k: first[k] for k in ("schema", "environment", "device")},
        "command": " & ".join(facts["command"] for _, facts in runs),
        "plan": plan,
        "rows": rows,
        "ablation": [a for _, facts in runs for a in facts["ablation"]],
        "skipped": [s for _, f in runs for s in f["skipped"] if not s.startswith("projection")],
        "date": max(facts["date"] for _, facts in runs),
    }
    if evaluation is not None:
        found |= _projected(found, evaluation, first_name)
    return found


def _check_alike(
    facts: Facts, name: str, other: Facts, other_name: str, *, besides: Collection[str]
) -> None:
    """Refuse results of another machine, of other versions or of other settings."""
    for what in ("environment", "device", "plan"):
        one, two = facts[what], other[what]
        differing = sorted(k for k in one | two if k not in besides and one.get(k) != two.get(k))
        require(
            not differing, f"{name} differs from {other_name} in {what}: {', '.join(differing)}"
        )


def _projected(found: Facts, evaluation: Facts, name: str) -> Facts:
    """The minutes of the search whose projection the `evaluation` is."""
    require("projection" in evaluation, "the results for --evaluation hold no projection")
    # It is of steps taken in another way: with or without graphs, say.
    besides = {*evaluation["plan"], *found["plan"]} - {"sizes", "precision", "workers", "clock"}
    _check_alike(evaluation, "--evaluation", found, name, besides=besides)
    main = {
        "variant": "ours",
        "status": "ok",
        "token_ratio": evaluation["projection"]["token_ratio"],
        "batch_size": evaluation["projection"]["batch_size"],
        "order": evaluation["plan"]["orders"][0],
    }
    plan = found["plan"]
    rows = {
        row["stage"]: row
        for row in found["rows"]
        if main.items() <= row.items() and "median_seconds" in row
    }
    before = {int(k): v for k, v in evaluation["projection"]["evaluation_seconds_an_image"].items()}
    require(set(rows) == set(before), "a stage's step is missing for the projection")
    cell = Cell(
        stage=1, token_ratio=main["token_ratio"], batch_size=main["batch_size"], order=main["order"]
    )
    config = cell.config(Sizes(**plan["sizes"]), precision=plan["precision"])
    steps, starts = (
        {stage: rows[stage][name] for stage in sorted(rows)}
        for name in ("median_seconds", "start_seconds")
    )
    data, of = evaluation["data"], evaluation["projection"]
    ends = of.get("checkpoint_seconds")  # not in files of before it was measured
    projected = project(
        config,
        steps,
        before,
        data["ours"],
        starts,
        checkpoint=ends and {int(stage): seconds for stage, seconds in ends.items()},
        plan=of.get("plan_seconds"),
    )
    return {"data": data, "projection": projected}


def run(argv: list[str]) -> None:
    """Merge the files that a command line names.

    Raises:
        ValueError: as `merge`.
    """
    args: Args = parse(Args, argv)
    check_out(args.out)
    evaluation = None if args.evaluation is None else read_results(args.evaluation)
    facts = merge([(str(path), read_results(path)) for path in args.files], evaluation)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps(facts, indent=1) + "\n")
    print(f"results: {args.out}")


if __name__ == "__main__":
    run_command(run)
