"""A TensorBoard run per configuration: the mean over its seeds."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dasvit.report.events import SearchEpoch
from dasvit.report.record import read_trace
from dasvit.report.tensorboard import DISCRETISED, TRAINED, epoch_scalars, write_run
from tune.report.outcome import Outcome
from tune.store import ResultFolder

__all__ = ["write_means"]

MEAN_DIR = "mean"


def write_means(outcome: Outcome, folder: ResultFolder) -> None:
    """Write `mean/config_003/` and so on: what TensorBoard shows of a configuration's finished
    searches, averaged. Nothing without several seeds; a run that is up to date is left alone."""
    if outcome.plan.seeds == 1:
        return
    for config in outcome.configs:
        paths = [folder.search_dir / trial.name / "alpha.jsonl" for trial in config.trials]
        if not all(path.exists() for path in paths):
            continue
        ended = max(path.stat().st_mtime for path in paths)
        # A seed that finishes later gives a later name, whose points replace those before.
        run = folder.root / MEAN_DIR / f"config_{config.config_index:03d}"
        file = run / f"events.out.tfevents.{int(ended):010d}.seeds_{len(paths):03d}"
        if file.exists():
            continue
        operations = outcome.plan.search.space.operations
        traces = [[_scalars(row, operations) for row in read_trace(path)] for path in paths]
        rows = [_mean(seeds) for seeds in zip(*traces, strict=False)]
        rows.append({DISCRETISED: config.score("discretised_accuracy").mean})
        if outcome.plan.climbs:
            rows[-1][TRAINED] = config.score("trained_accuracy").mean
        method = outcome.plan.start(config.config_index).method.name
        write_run(file, rows, {"method": method} | config.settings, ended=ended)


def _scalars(row: Mapping[str, Any], operations: Sequence[str]) -> dict[str, float]:
    """An epoch's scalars from its line of the trace; a pruned operation has weight 0."""
    known: dict[str, Any] = {k: math.nan if v is None else v for k, v in row.items()}
    return epoch_scalars(SearchEpoch(**known), operations)


def _mean(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = [tag for tag in seeds[0] if all(tag in values for values in seeds)]
    return {tag: fmean(values[tag] for values in seeds) for tag in common}
