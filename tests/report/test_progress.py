"""The lines that a run prints, and its guess at the time left."""

import io
import math
from dataclasses import replace

import pytest
from support.events import RETRAIN_EPOCH, RETRAIN_RESULT, SEARCH_EPOCH, SEARCH_RESULT, STAGE_END
from support.runs import ENCODER

import dasvit.report.progress
from dasvit.report.events import Choosing, Event
from dasvit.report.progress import ProgressReport, counted, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counted() -> None:
    for number, asked, words in ((1, 1, "1 seed"), (1, 2, "1 of 2 seeds"), (3, 0, "3 seeds")):
        assert counted(number, "seed", asked=asked) == words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one value is the time."""
    now = [1000.0]
    monkeypatch.setattr(dasvit.report.progress.time, "perf_counter", lambda: now[0])
    return now


def lines(*events: Event, report: ProgressReport | None = None) -> str:
    stream = io.StringIO()
    report = report or ProgressReport()
    report._stream = stream
    for event in events:
        report(event)
    return stream.getvalue()


def test_epochs_and_the_time_left(clock: list[float]) -> None:
    report = ProgressReport()
    clock[0] += 30  # reading data is no epoch
    first = replace(SEARCH_EPOCH, seconds=10.0, total_epochs=12)
    assert lines(first, report=report) == (
        "epoch  1/12  stage 1 (2 layers, 2 candidates)  train loss 2.250  val accuracy  33.3 %  "
        "identity 0.00  zero 0.25  1 min 50 s left\n"
    )
    assert "val accuracy     – %" in lines(replace(first, val_accuracy=math.nan))
    clock[0] += 20
    second = lines(replace(first, epoch=1, stage=1, num_layers=4), report=report)
    assert second.startswith("epoch  2/12  stage 2 (4 layers")
    assert second.endswith("2 min 30 s left\n")  # 30 s for two, ten to go
    last = lines(replace(first, epoch=11), report=report)
    assert last.startswith("epoch 12/12") and last.endswith("  done\n")
    # After a restart, the guess counts this process only.
    assert lines(replace(first, epoch=8)).endswith("  30 s left\n")
    assert lines(replace(RETRAIN_EPOCH, seconds=75.0)) == (
        "epoch 1/2  train loss 2.250  train accuracy  10.0 %  lr 1.00e-06  1 min 15 s left\n"
    )


def test_ends(capsys: pytest.CaptureFixture[str]) -> None:
    report = ProgressReport()  # on standard output
    for event in (replace(STAGE_END, stage=1), SEARCH_RESULT, RETRAIN_RESULT):
        report(event)
    stage, found, searched, trained = capsys.readouterr().out.splitlines()
    assert stage.endswith(str(ENCODER)) and found == f"found {ENCODER}"
    assert "supernet 60.0 %" in searched and "inherited weights 14.3 %; 12 s" in searched
    assert trained == "test accuracy of vit: 33.33 %; 0.00 M parameters; 6 s"
    report(replace(SEARCH_RESULT, largest_class=0.4))
    assert "inherited weights 14.3 %, largest class 40.0 %; 12 s\n" in capsys.readouterr().out
    for decided, warns in ((0.029, True), (0.031, False)):
        report(replace(SEARCH_RESULT, decided=decided))
        assert ("warning: all weights stayed within 0.03" in capsys.readouterr().out) == warns
    report(replace(RETRAIN_RESULT, balanced_accuracy=0.25, largest_class=0.4))
    shown = "(balanced 25.00 %, largest class 40.00 %); no better than one answer to all;"
    assert shown in capsys.readouterr().out


ALL = (("zero", "identity", "msa_h2"),) * 5


@pytest.mark.parametrize(
    ("kept", "after", "names"),
    [
        ((("msa_h2",),) * 5, 0.15, ": zero, identity went from all 5 edges"),
        (ALL[:2] + (("zero", "msa_h2"),) * 3, 0.0, ": identity went from 3 of 5 edges"),
        (ALL, 0.1, ""),
        ((("zero", "msa_h2"),) * 5, 0.16, None),
    ],
)
def test_a_change_of_stage_that_drops_to_chance_is_a_warning(
    kept: tuple, after: float, names: str | None
) -> None:
    """At most 1.5 times the largest class's share, here 0.1."""
    event = replace(STAGE_END, edge_ops=ALL, kept=kept, accuracy_after=after)
    first, second, *more = lines(event).splitlines()
    assert first == f"stage 1 ends; derived so far: {ENCODER}"
    assert second == f"stage 2 begins: val accuracy 75.0 % before, {100 * after:.1f} % now"
    warning = "warning: the change of stage dropped the supernet to chance"
    assert more == ([] if names is None else [warning + names])
    low = replace(event, accuracy_before=0.15)  # it was at chance before
    assert "warning" not in lines(low)


def test_a_choice_that_takes_long_is_told_ten_times() -> None:
    told = lines(*(Choosing(done=done, total=95) for done in range(95))).splitlines()
    assert told[:2] == ["choosing the encoder: 0 % done", "choosing the encoder: 10 % done"]
    assert len(told) == 10
