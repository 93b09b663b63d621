"""A `Report` that writes TensorBoard event files: scalars, figures, text, hyper-parameters."""

import math
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from dasvit.report.events import (
    Event,
    Report,
    RetrainEpoch,
    RetrainResult,
    SearchEpoch,
    SearchResult,
    StageEnd,
    edge_name,
    scalars,
)
from dasvit.report.plots import encoder_figure, heatmap_figure
from dasvit.spaces.cell.genotype import Genotype, edge_list

__all__ = ["TensorBoardReport", "tensorboard_report"]


class TensorBoardReport:
    """Writes every event of one search or one retraining to one run folder.

    ================ ============================================================ ==============
    event            tags                                                         step
    ================ ============================================================ ==============
    SearchEpoch      `metrics.scalars`, `weights/<edge>/<operation>`              epoch
    StageEnd         images `operation_weights`, `encoder`; text `genotype`       stage
    SearchResult     image `result/encoder`; text `result/genotype`; `hparam/…`   epochs done
    RetrainEpoch     `metrics.scalars`                                            epoch
    RetrainResult    `hparam/…`                                                   epochs done
    ================ ============================================================ ==============

    `hparam/…` are the numbers of `metrics.scalars`, shown beside the settings in the HParams
    tab. That tab takes its columns from the first run it finds, so compare searches with
    searches and retrainings with retrainings: keep them under separate folders. The Custom
    Scalars tab has one chart an edge with the weights of all its operations. Numbers that are
    nan are left out.

    A context manager; what an event holds is on disk when the call returns.

    Args:
        log_dir: folder of the run.
        start_epoch: first epoch (0-based) that will be reported. What an interrupted run wrote
            for this and later epochs is hidden, so a resumed run replaces it; 0 hides all.
        hparams: settings of the run; nested ones become `data.dataset` and the like.
    """

    def __init__(
        self,
        log_dir: str | Path,
        *,
        start_epoch: int = 0,
        hparams: Mapping[str, Any] | None = None,
    ) -> None:
        _wait_for_later_name(Path(log_dir))
        self._writer = SummaryWriter(str(log_dir), purge_step=start_epoch)
        self._hparams = dict(hparams or {})
        self._epochs_done = start_epoch
        self._operations: tuple[str, ...] | None = None
        self._charts_written = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, SearchEpoch):
            self._search_epoch(event)
        elif isinstance(event, RetrainEpoch):
            self._epoch_scalars(event)
        elif isinstance(event, StageEnd):
            self._stage_end(event)
        elif isinstance(event, SearchResult):
            self._figure("result/encoder", encoder_figure(event.genotype), self._epochs_done)
            self._genotype("result/genotype", event.genotype, self._epochs_done)
            self._result(event, {**self._hparams, **event.settings})
        elif isinstance(event, RetrainResult):
            self._result(event, {"model": event.model, **self._hparams})
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file. More calls do nothing."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if not math.isnan(value):
            self._writer.add_scalar(tag, value, step)

    def _epoch_scalars(self, event: SearchEpoch | RetrainEpoch) -> None:
        for name, value in scalars(event).items():
            self._scalar(name, value, event.epoch)
        self._epochs_done = event.epoch + 1

    def _search_epoch(self, event: SearchEpoch) -> None:
        self._epoch_scalars(event)
        edges = [edge_name(source, node) for source, node in edge_list(event.num_nodes)]
        for edge, weights, names in zip(edges, event.weights, event.edge_ops, strict=True):
            for weight, name in zip(weights, names, strict=True):
                self._scalar(f"weights/{edge}/{name}", weight, event.epoch)
        if not self._charts_written:
            charts = {e: ["Multiline", [re.escape(f"weights/{e}/") + ".*"]] for e in edges}
            self._writer.add_custom_scalars({"weights": charts})
            self._charts_written = True

    def _stage_end(self, event: StageEnd) -> None:
        if event.stage == 0:  # the later stages' heat maps keep the first one's columns
            self._operations = tuple(dict.fromkeys(n for row in event.edge_ops for n in row))
        title = f"stage {event.stage}"
        heatmap = heatmap_figure(
            event.weights, event.edge_ops, operations=self._operations, title=title
        )
        self._figure("operation_weights", heatmap, event.stage)
        self._figure("encoder", encoder_figure(event.genotype, title), event.stage)
        self._genotype("genotype", event.genotype, event.stage)

    def _figure(self, tag: str, figure: Figure, step: int) -> None:
        # Not `add_figure`: it goes through pyplot, whose state belongs to the caller.
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # (height, width, 3)
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def _genotype(self, tag: str, genotype: Genotype, step: int) -> None:
        lines = [*str(genotype).split("; "), f"hash {genotype.canonical_hash}"]
        self._writer.add_text(tag, "\n".join("    " + line for line in lines), step)  # as code

    def _result(self, event: SearchResult | RetrainResult, settings: Mapping[str, Any]) -> None:
        numbers = {
            f"hparam/{name}": value
            for name, value in scalars(event).items()
            if not math.isnan(value)
        }
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value, self._epochs_done)
        # Not `add_hparams`: it would open a run of its own in a folder below this one.
        file_writer = self._writer._get_file_writer()
        assert file_writer is not None
        for summary in hparams_summaries(_flat(settings), numbers):
            file_writer.add_summary(summary)


def _wait_for_later_name(log_dir: Path) -> None:
    """Let the clock move on if an event file of this very second is already there.

    Event files are read in the order of their names, which begin with the second they were made
    in; a resumed run's file must come after the one that it corrects.
    """
    now = time.time()
    if any(log_dir.glob(f"events.out.tfevents.{int(now):010d}.*")):
        time.sleep(int(now) + 1.01 - now)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Settings as the HParams plug-in takes them: one level, numbers and text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, list | tuple):
            flat[prefix + name] = ", ".join(map(str, value))
        elif isinstance(value, bool | int | float | str):
            flat[prefix + name] = value
        else:
            flat[prefix + name] = str(value)
    return flat


def tensorboard_report(log_dir: str | Path, hparams: Mapping[str, Any]) -> Report:
    """A `TensorBoardReport` that opens its file at the first event.

    Until then the folder may turn out to be another run's; and the event's epoch says which of the
    epochs that lie there already are written again.

    Args:
        log_dir: the run's folder.
        hparams: settings by name, nested or flat.
    """
    writer: TensorBoardReport | None = None

    def report(event: Event) -> None:
        nonlocal writer
        if writer is None:
            writer = TensorBoardReport(log_dir, start_epoch=_first_epoch(event), hparams=hparams)
        writer(event)

    return report


def _first_epoch(event: Event) -> int:
    if isinstance(event, SearchEpoch | RetrainEpoch):
        return event.epoch
    # A run that stopped between its last epoch and its end: all epochs are to be kept.
    return event.epoch + 1 if isinstance(event, StageEnd) else sys.maxsize
