"""A `Report` that writes TensorBoard event files: curves, figures, text, the HParams tab."""

import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams

from dasvit.report.encoder import encoder_figure
from dasvit.report.events import (
    Choosing,
    Event,
    RetrainEpoch,
    SearchEpoch,
    SearchResult,
    StageEnd,
    model_name,
    operation_share,
    scalars,
)
from dasvit.report.plots import heatmap_figure
from dasvit.run.files import write_atomic
from dasvit.spaces.cell.genotype import Genotype, edge_list

__all__ = ["DISCRETISED", "TRAINED", "TensorBoardReport", "epoch_scalars", "write_run"]

TRAINED, DISCRETISED = "accuracy/trained", "accuracy/discretised"
TESTED, HELD_OUT = "accuracy/test", "accuracy/held_out"
_SEARCH_METRICS = (DISCRETISED, "accuracy/val")
_LAYOUT = {"weights": {"mean over the edges": ["Multiline", ["weights/.*"]]}}


class TensorBoardReport:
    """Writes every event of one search or one retraining to one run folder.

    ================ ======================================================== ==============
    event            tags                                                     step
    ================ ======================================================== ==============
    the first        text `settings`                                          0
    SearchEpoch      `events.scalars`, `weights/<operation>`                  epoch
    StageEnd         images `operation_weights`, `encoder`; text `genotype`   stage
    (the same)       `events.scalars`                                         epochs done
    SearchResult     `accuracy/discretised`; the HParams tab                  epochs done
    RetrainEpoch     `events.scalars`                                         epoch
    RetrainResult    `accuracy/test` or `accuracy/held_out`; the HParams tab  epochs done
    (the same)       `accuracy/balanced`, `accuracy/largest_class`            epochs done
    ================ ======================================================== ==============

    The HParams tab has the outer settings of a search with its accuracies, or model and seed of a
    retraining with its accuracy on the test images, or on those that were held out. It takes its
    columns from the first run it finds, so compare searches with searches and retrainings with
    retrainings: keep them under separate folders. A metric there is the last point of a curve,
    hence the accuracies of one point.

    The Custom Scalars tab has the weights of all operations in one chart. What it shows is always
    among the other scalars too, a card per tag: so these are means over the edges, and the single
    edges are in the heat map of each stage. Numbers that are nan are left out.

    The file is opened with the first event: until then the folder may turn out to be another
    run's. What an interrupted run wrote for this event's epoch and later ones is hidden, so a
    resumed run replaces it. What an event holds is on disk when the call returns.

    Args:
        log_dir: folder of the run.
        settings: all settings of the run; nested ones become `data.dataset` and the like.
        scored: `score` will follow a search.
    """

    def __init__(
        self, log_dir: str | Path, settings: Mapping[str, Any], *, scored: bool = False
    ) -> None:
        self._log_dir = Path(log_dir)
        self._settings = dict(settings)
        self._search_metrics = (TRAINED, *_SEARCH_METRICS) if scored else _SEARCH_METRICS
        self._writer: SummaryWriter | None = None
        self._epochs_done = 0
        self._operations: tuple[str, ...] | None = None
        self._derived: Genotype | None = None  # by alpha

    def __call__(self, event: Event) -> None:
        if isinstance(event, Choosing):
            return
        writer = self._writer = self._writer or self._open(event)
        if isinstance(event, SearchEpoch | RetrainEpoch):
            self._epochs_done = event.epoch + 1
            _add_scalars(writer, epoch_scalars(event), event.epoch)
        elif isinstance(event, StageEnd):
            self._stage_end(writer, event)
            _add_scalars(writer, scalars(event), self._epochs_done)
        elif isinstance(event, SearchResult):
            _add_scalars(writer, {DISCRETISED: event.discretised_accuracy}, self._epochs_done)
            if self._derived is not None and self._derived != event.genotype:
                last = len(event.stages)
                _add_figure(writer, "encoder", encoder_figure(event.genotype, "chosen"), last)
                _add_genotype(writer, "genotype", event.genotype, last)
            method = self._settings.get("method", {}).get("name")
            own = ({"method": method} if method else {}) | event.settings
            _add_summaries(writer, _hparams(own, self._search_metrics))
        else:
            tag = HELD_OUT if self._settings.get("held_out") else TESTED
            values = {
                tag: event.test_top1,
                "accuracy/balanced": event.balanced_accuracy,
                "accuracy/largest_class": event.largest_class,
            }
            known = {name: value for name, value in values.items() if value is not None}
            _add_scalars(writer, known, self._epochs_done)
            own = {"model": model_name(event.model), "seed": self._settings["seed"]}
            _add_summaries(writer, _hparams(own, [tag]))
        writer.flush()

    def score(self, accuracy: float) -> None:
        """Add what a search's encoder reached after a short training: `accuracy/trained`."""
        writer = self._writer = self._writer or self._open(None)
        _add_scalars(writer, {TRAINED: accuracy}, self._epochs_done)
        writer.flush()

    def close(self) -> None:
        """Finish the event file. More calls do nothing."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, event: Event | None) -> SummaryWriter:
        """Event files are read in the order of their names, which begin with the second they were
        made in: a resumed run's file must come after the one that it corrects."""
        now = time.time()
        if any(self._log_dir.glob(f"events.out.tfevents.{int(now):010d}.*")):
            time.sleep(int(now) + 1.01 - now)
        if isinstance(event, SearchEpoch | RetrainEpoch):
            self._epochs_done = event.epoch
        elif isinstance(event, StageEnd):
            self._epochs_done = event.epoch + 1
        else:  # a run that stopped between its last epoch and its result, or its score
            self._epochs_done = _total_epochs(self._settings)
        purge_step = self._epochs_done + (event is None)  # its result stays
        writer = SummaryWriter(str(self._log_dir), purge_step=purge_step)
        if self._epochs_done == 0:
            writer.add_text("settings", _table(self._settings), 0)
        if isinstance(event, SearchEpoch | StageEnd):
            _add_summaries(writer, [custom_scalars(_LAYOUT)])
        return writer

    def _stage_end(self, writer: SummaryWriter, event: StageEnd) -> None:
        self._derived = event.genotype
        if self._operations is None:  # the later stages' heat maps keep the first one's columns
            self._operations = tuple(dict.fromkeys(n for row in event.edge_ops for n in row))
        edges = edge_list(len(event.genotype.nodes))
        title, columns = f"stage {event.stage}", self._operations
        heatmap = heatmap_figure(
            event.weights, event.edge_ops, edges, operations=columns, title=title
        )
        _add_figure(writer, "operation_weights", heatmap, event.stage)
        _add_figure(writer, "encoder", encoder_figure(event.genotype, title), event.stage)
        _add_genotype(writer, "genotype", event.genotype, event.stage)


def epoch_scalars(
    event: SearchEpoch | RetrainEpoch, operations: Sequence[str] | None = None
) -> dict[str, float]:
    """An epoch's scalars by tag, with the mean weight of each operation over the edges.

    Args:
        event: the epoch.
        operations: whose weights; those that the epoch still has, if None.
    """
    values = scalars(event)
    if isinstance(event, SearchEpoch):
        names = operations or dict.fromkeys(name for row in event.edge_ops for name in row)
        for name in names:
            values[f"weights/{name}"] = operation_share(event.weights, event.edge_ops, name)
    return values


def write_run(
    path: Path, rows: Sequence[Mapping[str, float]], settings: Mapping[str, Any], *, ended: float
) -> None:
    """Write curves that are known in full, and what else `TensorBoardReport` has of a search in
    numbers, as one event file.

    Args:
        path: of the file. It hides the points of files in its folder whose names come before.
        rows: values by tag, a row per step.
        settings: what the HParams tab shows.
        ended: Unix time of the last step.
    """
    now = ended - sum(row.get("time/epoch_seconds", 0.0) for row in rows)
    metrics = [m for m in (TRAINED, *_SEARCH_METRICS) if any(m in row for row in rows)]
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder, purge_step=0)
        _add_summaries(writer, [custom_scalars(_LAYOUT), *_hparams(settings, metrics)])
        for step, row in enumerate(rows):
            now += row.get("time/epoch_seconds", 0.0)
            _add_scalars(writer, row, step, now)
        writer.close()
        (written,) = Path(folder).iterdir()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, written.read_bytes())


def _add_scalars(
    writer: SummaryWriter, values: Mapping[str, float], step: int, now: float | None = None
) -> None:
    for tag, value in values.items():
        if not math.isnan(value):
            writer.add_scalar(tag, value, step, now)


def _hparams(settings: Mapping[str, Any], metrics: Iterable[str]) -> tuple[Any, ...]:
    values = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()}
    return hparams(values, dict.fromkeys(metrics))


def _add_summaries(writer: SummaryWriter, summaries: Iterable[Any]) -> None:
    # Not `add_hparams`: it would open a run of its own in a folder below this one.
    file_writer = writer._get_file_writer()
    assert file_writer is not None
    for summary in summaries:
        file_writer.add_summary(summary)


def _add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    # Not `add_figure`: it goes through pyplot, whose state belongs to the caller.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # (height, width, 3)
    writer.add_image(tag, pixels, step, dataformats="HWC")


def _add_genotype(writer: SummaryWriter, tag: str, genotype: Genotype, step: int) -> None:
    lines = [*str(genotype).split("; "), f"hash {genotype.canonical_hash}"]
    writer.add_text(tag, "\n".join("    " + line for line in lines), step)  # as code


def _total_epochs(settings: Mapping[str, Any]) -> int:
    """Of a retraining, or of all stages of a search."""
    if method := settings.get("method"):
        return len(method["stage_layers"]) * method["stage_epochs"]
    return settings["epochs"]


def _table(settings: Mapping[str, Any]) -> str:
    """Settings as a table of Markdown, a line each."""
    lines = (f"| `{name}` | {value and f'`{value}`'} |" for name, value in _flat(settings))
    return "\n".join(("| setting | value |", "| --- | --- |", *lines))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            listed = isinstance(value, list | tuple)
            yield prefix + name, ", ".join(map(str, value)) if listed else str(value)
