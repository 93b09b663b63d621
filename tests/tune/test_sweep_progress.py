"""The live view of a phase."""

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


class Screen(io.StringIO):
    """What is shown of a search, with a clock beside it."""

    seconds = 0.0
    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal

    def view(self, **options: Any) -> Any:  # Any, as it takes the fake trials
        values = {
            "total": 4,
            "concurrent": 2,
            "done_before": frozenset(),
            "name": lambda config: config["name"],
            "metric": "score",
            "then": ", then 8 retrainings",
            "out": self,
            "now": lambda: self.seconds,
        }
        return Progress("search", **values | options)


@pytest.fixture
def screen() -> Screen:
    return Screen()


def test_lines_of_a_log(screen: Screen) -> None:
    progress = screen.view()
    one, two = FakeTrial({"name": "one"}), FakeTrial({"name": "two"})
    progress.on_trial_start(0, [], one)
    progress.on_trial_start(0, [], two)
    screen.seconds = 19
    progress.on_step_end(0, [one, two])
    assert screen.getvalue() == ""
    screen.seconds = 20
    one.last_result = {"epoch": 1, "total_epochs": 4}
    progress.on_step_end(0, [one, two])
    # One is a quarter through after 20 s, so a trial takes 80 s: 60 + 60 + 2 × 80 by two.
    assert screen.getvalue() == (
        "about 2 min 20 s left | search 0/4 | 20 s elapsed | "
        "running one epoch 1/4, two starting, then 8 retrainings\n"
    )
    screen.seconds = 50
    one.last_result = {"finished": 1, "score": 0.5}
    progress.on_trial_complete(0, [], one)
    assert screen.getvalue().endswith("search 1/4  one  finished in 50 s, score 50.0%\n")
    two.last_result = {"finished": 0}
    progress.on_trial_complete(0, [], two)
    assert screen.getvalue().endswith("search 2/4  two  FAILED in 50 s\n")
    screen.seconds = 60
    progress.on_step_end(0, [])
    # Two are left, of 50 s each, at once.
    assert screen.getvalue().endswith(
        "about 50 s left | search 2/4 | 1 failed | best 50.0% | 1 min 00 s elapsed"
        ", then 8 retrainings\n"
    )


def test_a_terminal_has_one_line(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen.is_terminal = True
    progress = screen.view()
    trial = FakeTrial({"name": "one" * 20}, {"epoch": 2, "total_epochs": 4})
    progress.on_trial_start(0, [], trial)
    for screen.seconds in (1.0, 2.0):
        progress.on_step_end(0, [trial])
    assert "\n" not in screen.getvalue()
    *_, line = screen.getvalue().split("\r")
    assert line.startswith("about ") and " left | search 0/4 | " in line and len(line) == 79
    trial.last_result = {"finished": 1, "score": 0.5}
    progress.on_trial_complete(0, [], trial)
    last = f"\rsearch 1/4  {'one' * 20}  finished in 2 s, score 50.0%\n"
    assert screen.getvalue().endswith(last)


def test_the_last_trial_bounds_the_end(screen: Screen) -> None:
    """One trial left cannot be shared by two workers. What had finished before counts, but is not
    told."""
    progress = screen.view(total=3, done_before=frozenset({"before"}))
    before, done = (FakeTrial({"name": n}, {"finished": 1, "score": 0.9}) for n in ("before", "a"))
    for trial in (before, done):
        progress.on_trial_start(0, [], trial)
    progress.on_trial_complete(0, [], before)
    assert screen.getvalue() == ""
    screen.seconds = 100
    progress.on_trial_complete(0, [], done)
    progress.on_trial_start(0, [], FakeTrial({"name": "b"}))
    shown = progress.status([("b", {})])
    assert shown.startswith("about 1 min 40 s left | search 2/3 | best 90.0% | ")


def test_errors_and_stops_are_counted_and_passed_on(screen: Screen, tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    def tell(config: dict[str, Any], what: Any) -> None:
        told.append((config["name"], what))

    progress = screen.view(failed=tell, stopped=tell)
    kept = tmp_path / "error.txt"
    kept.write_text("Traceback\nit died")
    for name, file in (("one", str(kept)), ("two", str(tmp_path / "none")), ("three", None)):
        progress.on_trial_error(0, [], FakeTrial({"name": name}, error_file=file))
    progress.on_trial_complete(0, [], FakeTrial({"name": "four"}, {"epoch": 2}))
    assert told == [("one", "Traceback\nit died"), ("four", {"epoch": 2})]
    first, *_, last = screen.getvalue().splitlines()
    assert (first, last) == ("search 1/4  one  FAILED", "search 4/4  four  stopped after epoch 2")
