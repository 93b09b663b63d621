"""A `Report` that writes TensorBoard event files: scalars, figures, text, hyper-parameters."""

import math
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from dasvit.report.encoder import encoder_figure
from dasvit.report.events import (
    Event,
    RetrainEpoch,
    RetrainResult,
    SearchEpoch,
    SearchResult,
    StageEnd,
    edge_name,
    scalars,
)
from dasvit.report.plots import heatmap_figure
from dasvit.spaces.cell.genotype import Genotype, edge_list

__all__ = ["TensorBoardReport"]


class TensorBoardReport:
    """Writes every event of one search or one retraining to one run folder.

    ================ ============================================================ ==============
    event            tags                                                         step
    ================ ============================================================ ==============
    SearchEpoch      `events.scalars`, `weights/<edge>/<operation>`               epoch
    StageEnd         images `operation_weights`, `encoder`; text `genotype`       stage
    SearchResult     image `result/encoder`; text `result/genotype`; `hparam/…`   epochs done
    RetrainEpoch     `events.scalars`                                             epoch
    RetrainResult    `hparam/…`                                                   epochs done
    ================ ============================================================ ==============

    `hparam/…` are the numbers of `events.scalars`, shown beside the settings in the HParams
    tab. That tab takes its columns from the first run it finds, so compare searches with
    searches and retrainings with retrainings: keep them under separate folders. The Custom
    Scalars tab has one chart per edge with the weights of all its operations. Numbers that are
    nan are left out.

    The file is opened with the first event: until then the folder may turn out to be another
    run's. What an interrupted run wrote for this event's epoch and later ones is hidden, so a
    resumed run replaces it. What an event holds is on disk when the call returns.

    Args:
        log_dir: folder of the run.
        hparams: settings of the run; nested ones become `data.dataset` and the like.
    """

    def __init__(self, log_dir: str | Path, hparams: Mapping[str, Any] | None = None) -> None:
        self._log_dir = Path(log_dir)
        self._hparams = dict(hparams or {})
        self._writer: SummaryWriter | None = None
        self._epochs_done = 0
        self._operations: tuple[str, ...] | None = None
        self._charts_written = False

    def __call__(self, event: Event) -> None:
        writer = self._writer = self._writer or self._open(event)
        if isinstance(event, SearchEpoch | RetrainEpoch):
            self._epochs_done = event.epoch + 1
            _add_scalars(writer, scalars(event), event.epoch)
        if isinstance(event, SearchEpoch):
            self._edge_weights(writer, event)
        elif isinstance(event, StageEnd):
            self._stage_end(writer, event)
        elif isinstance(event, SearchResult):
            _add_figure(writer, "result/encoder", encoder_figure(event.genotype), self._epochs_done)
            _add_genotype(writer, "result/genotype", event.genotype, self._epochs_done)
            self._result(writer, event, {**self._hparams, **event.settings})
        elif isinstance(event, RetrainResult):
            self._result(writer, event, {"model": event.model, **self._hparams})
        writer.flush()

    def close(self) -> None:
        """Finish the event file. More calls do nothing."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, event: Event) -> SummaryWriter:
        """Event files are read in the order of their names, which begin with the second they were
        made in: a resumed run's file must come after the one that it corrects."""
        now = time.time()
        if any(self._log_dir.glob(f"events.out.tfevents.{int(now):010d}.*")):
            time.sleep(int(now) + 1.01 - now)
        if isinstance(event, SearchEpoch | RetrainEpoch):
            self._epochs_done = event.epoch
        else:  # a run that stopped between its last epoch and its end: all epochs are kept
            self._epochs_done = event.epoch + 1 if isinstance(event, StageEnd) else sys.maxsize
        return SummaryWriter(str(self._log_dir), purge_step=self._epochs_done)

    def _edge_weights(self, writer: SummaryWriter, event: SearchEpoch) -> None:
        edges = [edge_name(source, node) for source, node in edge_list(event.num_nodes)]
        for edge, weights, names in zip(edges, event.weights, event.edge_ops, strict=True):
            tagged = {f"weights/{edge}/{n}": w for n, w in zip(names, weights, strict=True)}
            _add_scalars(writer, tagged, event.epoch)
        if not self._charts_written:
            charts = {e: ["Multiline", [re.escape(f"weights/{e}/") + ".*"]] for e in edges}
            writer.add_custom_scalars({"weights": charts})
            self._charts_written = True

    def _stage_end(self, writer: SummaryWriter, event: StageEnd) -> None:
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

    def _result(
        self,
        writer: SummaryWriter,
        event: SearchResult | RetrainResult,
        settings: Mapping[str, Any],
    ) -> None:
        numbers = {f"hparam/{name}": value for name, value in scalars(event).items()}
        numbers = {tag: value for tag, value in numbers.items() if not math.isnan(value)}
        _add_scalars(writer, numbers, self._epochs_done)
        # Not `add_hparams`: it would open a run of its own in a folder below this one.
        file_writer = writer._get_file_writer()
        assert file_writer is not None
        for summary in hparams_summaries(_flat(settings), numbers):
            file_writer.add_summary(summary)


def _add_scalars(writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
    for tag, value in values.items():
        if not math.isnan(value):
            writer.add_scalar(tag, value, step)


def _add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    # Not `add_figure`: it goes through pyplot, whose state belongs to the caller.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # (height, width, 3)
    writer.add_image(tag, pixels, step, dataformats="HWC")


def _add_genotype(writer: SummaryWriter, tag: str, genotype: Genotype, step: int) -> None:
    lines = [*str(genotype).split("; "), f"hash {genotype.canonical_hash}"]
    writer.add_text(tag, "\n".join("    " + line for line in lines), step)  # as code


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Settings as the HParams plug-in takes them: one level, numbers and text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[prefix + name] = ", ".join(map(str, value))
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float) else str(value)
    return flat
