"""A run's progress on the terminal: one line per epoch, with the time left."""

import math
import sys
import time
from typing import TextIO

from dasvit.report.events import (
    NEAR_UNIFORM,
    Choosing,
    Event,
    RetrainEpoch,
    RetrainResult,
    SearchEpoch,
    SearchResult,
    StageEnd,
    operation_share,
)

__all__ = ["ProgressReport", "counted", "duration"]


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, noun: str, *, asked: int = 0) -> str:
    """`1 seed`, `2 seeds`; `1 of 2 seeds` where more were asked for."""
    number, words = max(number, asked), f"{number} of {asked}" if asked > number else f"{number}"
    return f"{words} {noun}" + ("" if number == 1 else "s")


class ProgressReport:
    """Prints every event to a stream, flushed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._started = time.perf_counter()
        self._first_epoch: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Choosing) and event.done % math.ceil(event.total / 10):
            return  # ten lines are enough
        print(self._line(event), file=self._stream, flush=True)

    def _line(self, event: Event) -> str:
        match event:
            case Choosing():
                return f"choosing the encoder: {100 * event.done // event.total} % done"
            case SearchEpoch():
                skip = operation_share(event.weights, event.edge_ops, "identity")
                zero = operation_share(event.weights, event.edge_ops, "zero")
                accuracy = event.val_accuracy
                percent = "    –" if math.isnan(accuracy) else f"{100 * accuracy:5.1f}"
                return (
                    f"{self._epoch(event)}  stage {event.stage + 1} ({event.num_layers} layers, "
                    f"{len(event.edge_ops[0])} candidates)  train loss {event.train_loss:.3f}  "
                    f"val accuracy {percent} %  identity {skip:.2f}  zero {zero:.2f}  "
                    f"{self._left(event)}"
                )
            case RetrainEpoch():
                return (
                    f"{self._epoch(event)}  train loss {event.train_loss:.3f}  train accuracy "
                    f"{100 * event.train_accuracy:5.1f} %  lr {event.lr:.2e}  {self._left(event)}"
                )
            case StageEnd():
                return _stage_end(event)
            case SearchResult():
                largest = event.largest_class
                beside = "" if largest is None else f", largest class {100 * largest:.1f} %"
                warning = ""
                if event.chose_at_random:
                    warning = (
                        f"\nwarning: all weights stayed within {NEAR_UNIFORM} of uniform, so this "
                        "search chose nearly at random; try a larger alpha_lr or more epochs"
                    )
                if event.collapsed:
                    warning += (
                        "\nwarning: all edges but one at most hold a skip: the search has "
                        "collapsed; try another method or fewer epochs"
                    )
                return (
                    f"found {event.genotype}\nvalidation accuracy: supernet "
                    f"{100 * event.supernet_accuracy:.1f} %, derived with inherited weights "
                    f"{100 * event.discretised_accuracy:.1f} %{beside}; {duration(event.seconds)}"
                    f"{warning}"
                )
            case RetrainResult():
                beside = []
                if event.balanced_accuracy is not None:
                    beside.append(f"balanced {100 * event.balanced_accuracy:.2f} %")
                if event.largest_class is not None:
                    beside.append(f"largest class {100 * event.largest_class:.2f} %")
                known = f" ({', '.join(beside)})" if beside else ""
                warning = "" if event.beats_one_answer else "; no better than one answer to all"
                return (
                    f"test accuracy of {event.model}: {100 * event.test_top1:.2f} %{known}"
                    f"{warning}; {event.num_params / 1e6:.2f} M parameters; "
                    f"{duration(event.seconds)}"
                )

    def _epoch(self, event: SearchEpoch | RetrainEpoch) -> str:
        width = len(str(event.total_epochs))
        return f"epoch {event.epoch + 1:{width}d}/{event.total_epochs}"

    def _left(self, event: SearchEpoch | RetrainEpoch) -> str:
        if self._first_epoch is None:
            self._first_epoch = event.epoch
            self._started = time.perf_counter() - event.seconds
        rate = (time.perf_counter() - self._started) / (event.epoch + 1 - self._first_epoch)
        remaining = event.total_epochs - event.epoch - 1
        return f"{duration(rate * remaining)} left" if remaining else "done"


def _stage_end(event: StageEnd) -> str:
    why = "" if event.stopped is None else f" early, {event.stopped}"
    line = f"stage {event.stage + 1} ends{why}; derived so far: {event.genotype}"
    if event.accuracy_after is None:
        return line
    before, now = 100 * event.accuracy_before, 100 * event.accuracy_after
    line += f"\nstage {event.stage + 2} begins: val accuracy {before:.1f} % before, {now:.1f} % now"
    if not event.drops_to_chance:
        return line
    line += "\nwarning: the change of stage dropped the supernet to chance"
    if pruned := event.pruned:
        most, edges = max(pruned.values()), len(event.edge_ops)
        names = ", ".join(name for name, count in pruned.items() if count == most)
        line += f": {names} went from {'all' if most == edges else f'{most} of'} {edges} edges"
    return line
