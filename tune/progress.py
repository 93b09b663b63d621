"""The live view of a phase: one line that is refreshed on a terminal, log lines elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ray.tune import Callback
from ray.tune.experiment import Trial

from dasvit.report.progress import duration

__all__ = ["Progress"]

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 20.0


class Progress(Callback):
    """Counts a phase's trials and foretells its end.

    Args:
        phase: "search" or "retraining".
        total: trials of the phase.
        concurrent: trials at a time.
        done_before: trials that had finished before this run; Tune passes over them.
        name: of a trial, from its configuration.
        metric: the score that is shown, or None for none (the test set's is not looked at here).
        then: what follows the phase, for the line.
        failed: is told of a trial whose driver itself failed, more often than it is restarted:
            its configuration, and the error's text.
        stopped: is told of a trial that the scheduler ended early: its configuration, and its
            last report.
        out: where to print.
        now: a clock in seconds.
    """

    def __init__(
        self,
        phase: str,
        *,
        total: int,
        concurrent: int,
        done_before: frozenset[str],
        name: Callable[[dict[str, Any]], str],
        metric: str | None = None,
        then: str = "",
        failed: Callable[[dict[str, Any], str], None] | None = None,
        stopped: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
        out: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._phase, self._total, self._concurrent = phase, total, concurrent
        self._done_before, self._name, self._metric, self._then = done_before, name, metric, then
        self._tell, self._tell_stop = failed, stopped
        # Not sys.stdout itself: Tune pickles its callbacks.
        self._given, self._now = out, now
        self._terminal = self._out.isatty()
        self._begun: dict[str, float] = {}
        self._durations: list[float] = []
        self._finished = self._failed = self._stopped = 0
        self._best: float | None = None
        self._started = self._printed = now()
        self._width = 0

    @property
    def _out(self) -> TextIO:
        return self._given or sys.stdout

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._begun.setdefault(self._name(trial.config), self._now())

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        name, result = self._name(trial.config), trial.last_result or {}
        if "finished" not in result and self._tell_stop is not None:
            self._tell_stop(trial.config, result)
            self._stopped += 1
            self._end(name, f"stopped after epoch {result.get('epoch', '?')}", timed=False)
            return
        if not result.get("finished"):
            self._failed += 1
            self._end(name, "FAILED", timed=False)
            return
        score = result.get(self._metric) if self._metric else None
        if score is not None and (self._best is None or score > self._best):
            self._best = score
        self._finished += 1
        self._end(name, "finished", score=score)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._failed += 1
        self._end(self._name(trial.config), "FAILED", timed=False)
        kept = Path(trial.error_file) if trial.error_file else None
        if self._tell is not None and kept is not None and kept.exists():
            self._tell(trial.config, kept.read_text(errors="replace"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        wait = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        if self._now() - self._printed < wait:
            return
        self._printed = self._now()
        running = [
            (self._name(trial.config), trial.last_result or {})
            for trial in trials
            if trial.status == Trial.RUNNING
        ]
        self._show(self.status(running))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        if self._terminal and self._width:
            self._print("")

    def status(self, running: list[tuple[str, dict[str, Any]]]) -> str:
        """The status line, from the running trials' names and last reports; what matters most
        comes first, as a narrow terminal cuts it."""
        left = self._seconds_left(running)
        parts = [] if left is None else [f"about {duration(left)} left"]
        parts.append(f"{self._phase} {self._done}/{self._total}")
        for count, word in ((self._failed, "failed"), (self._stopped, "stopped early")):
            if count:
                parts.append(f"{count} {word}")
        if self._best is not None:
            parts.append(f"best {self._best:.1%}")
        parts.append(f"{duration(self._now() - self._started)} elapsed")
        if running:
            epochs = [
                f"{name} epoch {last['epoch']}/{last['total_epochs']}"
                if "epoch" in last
                else f"{name} starting"
                for name, last in running
            ]
            parts.append("running " + ", ".join(epochs[:2]) + (", …" if len(epochs) > 2 else ""))
        return " | ".join(parts) + self._then

    def _seconds_left(self, running: list[tuple[str, dict[str, Any]]]) -> float | None:
        now = self._now()
        ages = {name: now - self._begun.get(name, now) for name, _ in running}
        shares = {
            name: last["epoch"] / last["total_epochs"] for name, last in running if "epoch" in last
        }
        # Before the first trial has finished, a running one is stretched to its whole length.
        guesses = self._durations or [ages[n] / share for n, share in shares.items() if share > 0]
        if not guesses:
            return None
        mean = sum(guesses) / len(guesses)
        waiting = self._total - self._done - len(running)
        # What a running trial still needs, by its epochs where it has reported, else by its age.
        remaining = [
            mean * (1 - shares[n]) if n in shares else max(0.0, mean - ages[n]) for n in ages
        ]
        total = sum(remaining) + max(0, waiting) * mean
        return max([total / self._concurrent, *remaining])

    @property
    def _done(self) -> int:
        return self._finished + self._failed + self._stopped

    def _end(self, name: str, how: str, *, timed: bool = True, score: float | None = None) -> None:
        begun = self._begun.pop(name, None)
        if name in self._done_before:
            return
        took = self._now() - begun if begun is not None else None
        if took is not None and timed:
            self._durations.append(took)
        line = f"{self._phase} {self._done}/{self._total}  {name}  {how}"
        line += f" in {duration(took)}" if took is not None else ""
        line += f", {self._metric} {score:.1%}" if score is not None else ""
        self._print(line)

    def _show(self, line: str) -> None:
        if not self._terminal:
            print(line, file=self._out, flush=True)
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line:<{self._width}}", end="", file=self._out, flush=True)
        self._width = len(line)

    def _print(self, line: str) -> None:
        if self._terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._out)
            self._width = 0
        if line:
            print(line, file=self._out, flush=True)
