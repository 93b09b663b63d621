import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from tune.progress import Progress


@dataclass
class FakeTrial:
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)
    status: str = Trial.RUNNING
    error_file: str | None = None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(out: io.StringIO, clock: Clock, **options: Any) -> Progress:
    return Progress(
        "search",
        **{
            "total": 4,
            "concurrent": 2,
            "done_before": frozenset(),
            "name": lambda config: config["name"],
            "metric": "score",
            "then": ", then 8 retrainings",
            "out": out,
            "now": clock,
        }
        | options,
    )


def test_lines_of_a_log(clock: Clock) -> None:
    out = io.StringIO()
    progress = make(out, clock)
    one, two = FakeTrial({"name": "one"}), FakeTrial({"name": "two"})
    progress.on_trial_start(0, [], one)
    progress.on_trial_start(0, [], two)
    clock.seconds = 19
    progress.on_step_end(0, [one, two])
    assert out.getvalue() == ""
    clock.seconds = 20
    one.last_result = {"epoch": 1, "total_epochs": 4}
    progress.on_step_end(0, [one, two])
    # One is a quarter through after 20 s, so a trial takes 80 s: 60 + 60 + 2 × 80 by two.
    assert out.getvalue() == (
        "about 2 min 20 s left | search 0/4 | 20 s elapsed | "
        "running one epoch 1/4, two starting, then 8 retrainings\n"
    )
    clock.seconds = 50
    one.last_result = {"finished": 1, "score": 0.5}
    progress.on_trial_complete(0, [], one)
    assert out.getvalue().endswith("search 1/4  one  finished in 50 s, score 50.0%\n")
    two.status = Trial.TERMINATED
    two.last_result = {"finished": 0}
    progress.on_trial_complete(0, [], two)
    assert out.getvalue().endswith("search 2/4  two  FAILED in 50 s\n")
    clock.seconds = 60
    progress.on_step_end(0, [])
    # Two are left, of 50 s each, at once.
    assert out.getvalue().endswith(
        "about 50 s left | search 2/4 | 1 failed | best 50.0% | 1 min 00 s elapsed"
        ", then 8 retrainings\n"
    )


def test_finished_before_counts_but_is_not_told(clock: Clock) -> None:
    out = io.StringIO()
    progress = make(out, clock, done_before=frozenset({"one"}))
    one = FakeTrial({"name": "one"}, {"finished": 1, "score": 0.9})
    progress.on_trial_start(0, [], one)
    progress.on_trial_complete(0, [], one)
    assert out.getvalue() == ""
    assert progress.status([]) == "search 1/4 | best 90.0% | 0 s elapsed, then 8 retrainings"


def test_a_terminal_has_one_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    progress = make(out, clock)
    trial = FakeTrial({"name": "one" * 20}, {"epoch": 2, "total_epochs": 4})
    progress.on_trial_start(0, [], trial)
    for clock.seconds in (1.0, 2.0):
        progress.on_step_end(0, [trial])
    assert "\n" not in out.getvalue()
    *_, line = out.getvalue().split("\r")
    assert line.startswith("about ") and " left | search 0/4 | " in line and len(line) == 79
    trial.last_result = {"finished": 1, "score": 0.5}
    progress.on_trial_complete(0, [], trial)
    assert out.getvalue().endswith(f"\rsearch 1/4  {'one' * 20}  finished in 2 s, score 50.0%\n")


def test_the_last_trial_bounds_the_end(clock: Clock) -> None:
    """One trial left cannot be shared by two workers."""
    progress = make(io.StringIO(), clock, total=3)
    done = [FakeTrial({"name": n}, {"finished": 1, "score": 0.5}) for n in "ab"]
    for trial in done:
        progress.on_trial_start(0, [], trial)
    clock.seconds = 100
    for trial in done:
        progress.on_trial_complete(0, [], trial)
    last = FakeTrial({"name": "c"})
    progress.on_trial_start(0, [], last)
    assert "about 1 min 40 s left" in progress.status([("c", {})])


def test_an_error_counts(clock: Clock) -> None:
    out = io.StringIO()
    progress = make(out, clock, metric=None)
    trial = FakeTrial({"name": "one"})
    progress.on_trial_start(0, [], trial)
    progress.on_trial_error(0, [], trial)
    assert out.getvalue() == "search 1/4  one  FAILED in 0 s\n"


def test_a_drivers_error_is_passed_on(clock: Clock, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    progress = make(
        io.StringIO(), clock, failed=lambda config, text: told.append((config["name"], text))
    )
    (tmp_path / "error.txt").write_text("Traceback\nit died")
    for name, file in (("one", str(tmp_path / "error.txt")), ("two", str(tmp_path / "none"))):
        progress.on_trial_error(0, [], FakeTrial({"name": name}, error_file=file))
    progress.on_trial_error(0, [], FakeTrial({"name": "three"}))
    assert told == [("one", "Traceback\nit died")]
