"""A run's progress on the terminal: a line an epoch, with the time left."""

import math
import sys
import time
from typing import TextIO

from dasvit.report.events import (
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


def counted(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


class ProgressReport:
    """Prints every event to a stream, flushed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._started = time.perf_counter()
        self._first_epoch: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, SearchEpoch):
            head = f"stage {event.stage + 1} ({event.num_layers} layers, "
            head += f"{len(event.edge_ops[0])} candidates)"
            skip = operation_share(event.weights, event.edge_ops, "identity")
            zero = operation_share(event.weights, event.edge_ops, "zero")
            self._print(
                f"{self._epoch(event)}  {head}  train loss {event.train_loss:.3f}  "
                f"val accuracy {_per_cent(event.val_accuracy)} %  "
                f"identity {skip:.2f}  zero {zero:.2f}  {self._left(event)}"
            )
        elif isinstance(event, RetrainEpoch):
            self._print(
                f"{self._epoch(event)}  train loss {event.train_loss:.3f}  "
                f"train accuracy {100 * event.train_accuracy:5.1f} %  lr {event.lr:.2e}  "
                f"{self._left(event)}"
            )
        elif isinstance(event, StageEnd):
            self._print(f"stage {event.stage + 1} ends; derived so far: {event.genotype}")
        elif isinstance(event, SearchResult):
            self._print(
                f"found {event.genotype}\n"
                f"validation accuracy: supernet {100 * event.supernet_accuracy:.1f} %, derived "
                f"with inherited weights {100 * event.discretised_accuracy:.1f} %, gap "
                f"{100 * event.gap:.1f} points; {duration(event.seconds)}"
            )
        elif isinstance(event, RetrainResult):
            self._print(
                f"test accuracy of {event.model}: top-1 {100 * event.test_top1:.2f} %, top-5 "
                f"{100 * event.test_top5:.2f} %; {event.num_params / 1e6:.2f} M parameters; "
                f"{duration(event.seconds)}"
            )

    def _epoch(self, event: SearchEpoch | RetrainEpoch) -> str:
        width = len(str(event.total_epochs))
        return f"epoch {event.epoch + 1:{width}d}/{event.total_epochs}"

    def _left(self, event: SearchEpoch | RetrainEpoch) -> str:
        if self._first_epoch is None:
            self._first_epoch = event.epoch
            self._started = time.perf_counter() - event.seconds
        done = event.epoch + 1 - self._first_epoch
        rate = (time.perf_counter() - self._started) / done
        remaining = event.total_epochs - event.epoch - 1
        return f"{duration(rate * remaining)} left" if remaining else "done"

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _per_cent(ratio: float) -> str:
    return "    –" if math.isnan(ratio) else f"{100 * ratio:5.1f}"
