"""A TensorBoard run per configuration, from the traces that its seeds left."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from support.events import RETRAIN_RESULT, SEARCH_EPOCH
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dasvit.report.record import JsonLinesReport
from tune.report.means import write_means
from tune.report.outcome import Outcome
from tune.store import ResultFolder


@pytest.fixture
def traced(outcome: Outcome, folder: ResultFolder) -> Outcome:
    """The outcome with the traces of its searches: two epochs, in which configuration 0's seeds
    have losses that differ by 1, and the second of them has pruned `zero`."""
    for number, trial in enumerate(outcome.search):
        path = folder.search_dir / trial.name / "alpha.jsonl"
        path.parent.mkdir(parents=True)
        write = JsonLinesReport(path)
        for epoch in range(2):
            own = {"train_loss": 2.0 + number - epoch, "seconds": 10.0}
            if trial.seed == 1:
                own |= {"edge_ops": (("msa_h2",),) * 5, "weights": ((1.0,),) * 5}
            write(dataclasses.replace(SEARCH_EPOCH, epoch=epoch, **own))
        os.utime(path, (1e9 + number, 1e9 + number))
    return outcome


def read(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run))
    found.Reload()
    return found


def points(found: EventAccumulator, tag: str) -> list[tuple[int, Any]]:
    return [(e.step, pytest.approx(e.value)) for e in found.Scalars(tag)]


def test_the_mean_over_the_seeds(traced: Outcome, folder: ResultFolder) -> None:
    """Of a continued sweep too, and in a TensorBoard that was open all the time."""
    single = dataclasses.replace(traced, plan=dataclasses.replace(traced.plan, seeds=1))
    write_means(single, folder)
    assert not (folder.root / "mean").exists()
    first = dataclasses.replace(traced, search=(traced.search[0], traced.search[2]))
    write_means(first, folder)
    runs = folder.root / "mean"
    opened = read(runs / "config_000")
    assert points(opened, "loss/train") == [(0, 2.0), (1, 1.0)]
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*")}
    write_means(first, folder)
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/*")} == before

    write_means(traced, folder)  # the second seed has finished
    assert sorted(path.name for path in runs.iterdir()) == ["config_000", "config_001"]
    opened.Reload()
    for found in (opened, read(runs / "config_000")):
        assert points(found, "loss/train") == [(0, 2.5), (1, 1.5)]
        assert points(found, "accuracy/discretised") == [(2, 0.62)]
    assert points(found, "weights/zero") == [(0, 0.125), (1, 0.125)]  # 0 where it is pruned
    assert "loss/val" not in found.Tags()["scalars"]  # not measured
    # On TensorBoard's relative axis it takes as long as a seed does.
    assert [e.wall_time - 1e9 for e in found.Scalars("loss/train")] == [-9.0, 1.0]
    assert points(read(runs / "config_001"), "loss/train") == [(0, 4.0), (1, 3.0)]


def test_the_search_score_is_among_them(traced: Outcome, folder: ResultFolder) -> None:
    plan = dataclasses.replace(traced.plan, metric="trained_accuracy")
    short = dataclasses.replace(RETRAIN_RESULT, balanced_accuracy=0.75)
    scored = tuple(dataclasses.replace(trial, short=short) for trial in traced.search)
    write_means(dataclasses.replace(traced, plan=plan, search=scored), folder)
    assert points(read(folder.root / "mean" / "config_000"), "accuracy/trained") == [(2, 0.75)]
