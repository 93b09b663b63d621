"""The lines that a run prints, and its guess at the time left."""

import io
import math
from dataclasses import replace

import pytest
from support.events import RETRAIN_EPOCH, RETRAIN_RESULT, SEARCH_EPOCH, SEARCH_RESULT
from support.runs import ENCODER

import dasvit.report.progress
from dasvit.report.events import StageEnd
from dasvit.report.progress import ProgressReport, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one value is the time."""
    now = [1000.0]
    monkeypatch.setattr(dasvit.report.progress.time, "perf_counter", lambda: now[0])
    return now


def printed(report: ProgressReport, stream: io.StringIO, event: object) -> str:
    before = len(stream.getvalue())
    report(event)
    return stream.getvalue()[before:]


def test_search_lines(clock: list[float]) -> None:
    stream = io.StringIO()
    report = ProgressReport(stream)
    clock[0] += 30  # reading data is no epoch
    first = replace(SEARCH_EPOCH, seconds=10.0, total_epochs=12)
    assert printed(report, stream, first) == (
        "epoch  1/12  stage 1 (2 layers, 2 candidates)  train loss 2.250  val accuracy  33.3 %  "
        "identity 0.00  zero 0.25  1 min 50 s left\n"
    )
    assert "val accuracy     – %" in printed(
        ProgressReport(stream), stream, replace(first, val_accuracy=math.nan)
    )
    clock[0] += 20
    second = printed(report, stream, replace(first, epoch=1, stage=1, num_layers=4))
    assert second.startswith("epoch  2/12  stage 2 (4 layers")
    assert second.endswith("2 min 30 s left\n")  # 30 s for two, ten to go
    last = printed(report, stream, replace(first, epoch=11))
    assert last.startswith("epoch 12/12")
    assert last.endswith("  done\n")


def test_the_guess_after_a_restart_counts_this_process_only(clock: list[float]) -> None:
    stream = io.StringIO()
    report = ProgressReport(stream)
    clock[0] += 10
    resumed = replace(SEARCH_EPOCH, epoch=8, total_epochs=12, seconds=10.0)
    assert printed(report, stream, resumed).endswith("  30 s left\n")


def test_retraining_line(clock: list[float]) -> None:
    stream = io.StringIO()
    line = printed(ProgressReport(stream), stream, replace(RETRAIN_EPOCH, seconds=75.0))
    assert line == (
        "epoch 1/2  train loss 2.250  train accuracy  10.0 %  lr 1.00e-06  1 min 15 s left\n"
    )


def test_ends() -> None:
    stream = io.StringIO()
    report = ProgressReport(stream)
    stage = StageEnd(
        epoch=0,
        stage=1,
        weights=SEARCH_EPOCH.weights,
        edge_ops=SEARCH_EPOCH.edge_ops,
        kept=None,
        genotype=ENCODER,
    )
    assert printed(report, stream, stage) == f"stage 2 ends; derived so far: {ENCODER}\n"
    assert printed(report, stream, SEARCH_RESULT) == (
        f"found {ENCODER}\n"
        "validation accuracy: supernet 60.0 %, derived with inherited weights 14.3 %, gap 45.7 "
        "points; 12 s\n"
    )
    assert printed(report, stream, RETRAIN_RESULT) == (
        "test accuracy of vit: top-1 33.33 %, top-5 90.00 %; 0.00 M parameters; 6 s\n"
    )


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressReport()(SEARCH_RESULT)
    assert capsys.readouterr().out.startswith("found o_0 = ")
