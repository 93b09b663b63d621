"""Epochs on their way from a worker's record to Tune."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tune.relay import EpochRelay


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "alpha.jsonl"


def row(epoch: int) -> str:
    values = {"epoch": epoch, "total_epochs": 4, "loss": 0.5, "bad": None, "weights": [[1.0]]}
    return json.dumps(values) + "\n"


class Reports:
    """What Tune was told, and a wait for more of it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._more = threading.Condition()

    def __call__(self, metrics: dict[str, Any]) -> None:
        with self._more:
            self.seen.append(metrics)
            self._more.notify_all()

    def wait_for(self, count: int) -> list[int]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.seen) >= count, timeout=30)
        return [metrics["epoch"] for metrics in self.seen]


def test_every_epoch_once_and_in_order(trace: Path) -> None:
    reports = Reports()
    with EpochRelay(trace, reports, seconds=0.005):  # no file yet
        trace.write_text(row(0))
        assert reports.wait_for(1) == [1]
        trace.write_text(row(0) + row(1) + row(2) + row(3)[:20])  # a torn line
        assert reports.wait_for(3) == [1, 2, 3]
        # A worker that starts again writes its last epoch anew.
        trace.write_text(row(0) + row(1))
        trace.write_text(row(0) + row(1) + row(2) + row(3))
        assert reports.wait_for(4) == [1, 2, 3, 4]
    assert reports.seen[0] == {"epoch": 1, "total_epochs": 4, "loss": 0.5, "timesteps_total": 1}


def test_an_epoch_without_evaluation_has_no_accuracy(trace: Path) -> None:
    """As the search writes it: null, which Tune takes for a number."""
    reports = Reports()
    values = [{"epoch": 0, "val_accuracy": None}, {"epoch": 1, "val_accuracy": 0.5}]
    trace.write_text("".join(json.dumps(v) + "\n" for v in values))
    with EpochRelay(trace, reports, seconds=0.005):
        reports.wait_for(2)
    assert "supernet_accuracy" not in reports.seen[0]
    assert reports.seen[1]["supernet_accuracy"] == 0.5


def test_nothing_after_the_end(trace: Path) -> None:
    reports = Reports()
    with EpochRelay(trace, reports, seconds=0.005):
        trace.write_text(row(0))
        reports.wait_for(1)
    trace.write_text(row(0) + row(1))
    assert not [t for t in threading.enumerate() if t.name == "epochs"]
    assert len(reports.seen) == 1
