"""Figures of a search, operation weights (Figure 3) and shares by epoch (Figure 2); and of a
trained network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dasvit.report.encoder import operation_label
from dasvit.report.events import EdgeOps, operation_share
from dasvit.report.style import CURVES, FAINT, INK, STYLE, new_figure
from dasvit.spaces.cell.genotype import source_name

__all__ = ["confusion_figure", "heatmap_figure", "operation_shares", "share_figure"]


@matplotlib.rc_context(STYLE)
def heatmap_figure(
    weights: Sequence[Sequence[float]],
    edge_ops: EdgeOps,
    edges: Sequence[tuple[int, int]],
    *,
    operations: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """The operation weights of every edge (Figure 3).

    Args:
        weights: of the candidates, one row per edge.
        edge_ops: the candidates of each row.
        edges: `(source, node)` of each row.
        operations: the columns, in order; by default every operation that an edge holds.
        title: above the map.

    Returns:
        One row per edge and one column per operation; a pruned candidate's cell is hatched.
    """
    columns = list(operations or dict.fromkeys(name for row in edge_ops for name in row))
    shown = np.ma.masked_array(np.zeros((len(edge_ops), len(columns))), mask=True)
    for row, (values, names) in enumerate(zip(weights, edge_ops, strict=True)):
        for value, name in zip(values, names, strict=True):
            shown[row, columns.index(name)] = value
    figure = new_figure(2.1 + 0.5 * len(columns), 1.35 + 0.36 * len(shown), title)
    axes = figure.subplots()
    axes.patch.set(facecolor="#f0f0f0", edgecolor="#cfcfcf", hatch="////")
    style: dict[str, Any] = {"edgecolors": "white", "linewidth": 1.5, "vmin": 0.0}
    cells = axes.pcolormesh(shown, cmap="Blues", **style)
    for row, column in np.argwhere(~np.ma.getmaskarray(shown)):
        value = shown[row, column]
        colour = INK if value < 0.6 * shown.max() else "white"
        text = {"size": 8, "ha": "center", "va": "center_baseline", "color": colour}
        axes.text(column + 0.5, row + 0.5, f"{value:.2f}", **text)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    names = [operation_label(name) for name in columns]
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, **slanted)
    labels = [rf"${source_name(s)} \rightarrow o_{{{j}}}$" for s, j in edges]
    axes.set_yticks(np.arange(len(shown)) + 0.5, labels, size=11)
    bar = figure.colorbar(cells, ax=axes, fraction=0.05, pad=0.02, label="weight")
    bar.outline.set_visible(False)
    return figure


def operation_shares(trace: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The mean weights of `identity` and `zero` by epoch, from the rows of a search's trace."""
    rows = sorted(trace, key=lambda row: row["epoch"])
    return {
        name: [operation_share(row["weights"], row["edge_ops"], name) for row in rows]
        for name in ("identity", "zero")
    }


@matplotlib.rc_context(STYLE)
def share_figure(
    runs: Mapping[str, Sequence[Mapping[str, Sequence[float]]]],
    *,
    stage_starts: Sequence[int] = (),
    title: str | None = None,
) -> Figure:
    """How much of the weight skips and zeros take as searches go on (Figure 2).

    Args:
        runs: by setting ("plain DARTS", "DASViT"), at least one search each; its "identity" and
            "zero" are mean weights over the edges by epoch (see `operation_shares`).
        stage_starts: epochs (0-based) at which a stage begins: faint dashed lines.
        title: above both panels.

    Returns:
        Two panels, identity and zero: a thin line per search, and a bold one, their mean up to the
        epoch that all of them reached.
    """
    figure = new_figure(8.4, 3.2, title)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, operation in zip(panels, ("identity", "zero"), strict=True):
        for start in stage_starts:
            axes.axvline(start - 0.5, color=FAINT, linewidth=0.7, linestyle="--", zorder=0)
        for s, (setting, searches) in enumerate(runs.items()):
            colour = CURVES[s % len(CURVES)]
            for search in searches:
                axes.plot(search[operation], color=colour, linewidth=0.8, alpha=0.4)
            common = min(len(search[operation]) for search in searches)
            mean = np.mean([search[operation][:common] for search in searches], axis=0)
            label = f"{setting} (n = {len(searches)})"
            axes.plot(mean, color=colour, linewidth=2.2, label=label)
        axes.set(title=operation, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02)
    panels[0].set_ylim(bottom=0.0)
    panels[0].set_ylabel("share of the weight")
    panels[0].legend()
    return figure


@matplotlib.rc_context(STYLE)
def confusion_figure(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Images by class (row) and answer (column), each row's colours by its shares.

    Args:
        confusion: counts, (classes, classes).
        names: of the classes.
    """
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= 20  # more would not be legible
    side = 1.8 + (0.42 if few else 0.06) * len(names)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if few:
        for (row, column), share in np.ndenumerate(shares):
            colour = INK if share < 0.6 else "white"
            text = {"size": 8, "ha": "center", "va": "center_baseline", "color": colour}
            axes.text(column, row, str(counts[row, column]), **text)
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, **slanted)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answer", ylabel="class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label="share of the class")
    bar.outline.set_visible(False)
    return figure
