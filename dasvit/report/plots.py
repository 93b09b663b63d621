"""Figures: the encoder (Figures 5, 6), operation weights (Figure 3), shares by epoch (Figure 2).

Values in, a matplotlib `Figure` out: no pyplot, no global state, equal input gives an equal
figure. Nothing here reads or writes a file but `save_figure` and `save_encoder`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from dasvit.report.encoder import (
    FAINT,
    FONT,
    INK,
    TEXT,
    encoder_figure,
    operation_family,
    operation_label,
)
from dasvit.report.events import EdgeOps, SearchEpoch, operation_share
from dasvit.spaces.cell.genotype import Genotype, edge_list, source_name

__all__ = [
    "encoder_figure",
    "heatmap_figure",
    "operation_label",
    "operation_shares",
    "save_encoder",
    "save_figure",
    "share_figure",
    "stage_heatmaps_figure",
]

# Colours of the curves, distinct for colour-blind readers (Okabe and Ito).
CURVES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def save_figure(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write `<stem>.png` (200 dpi) and `<stem>.svg`; equal figures give equal bytes.

    Args:
        stem: path without suffix (a dot in its name is part of the name); its folder is made.

    Returns:
        Both paths.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
    with matplotlib.rc_context({"svg.hashsalt": "dasvit"}):  # else identifiers are random
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def save_encoder(
    genotype: Genotype, stem: str | Path, title: str | None = None
) -> tuple[Path, Path]:
    """Draw an encoder and write it, see `encoder_figure` and `save_figure`."""
    return save_figure(encoder_figure(genotype, title), stem)


# --- operation weights ----------------------------------------------------------------------


def _merged_operations(edge_ops: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Every operation once, in an order that all rows agree with: pruning keeps a row's order,
    so this is the first stage's wherever the rows determine it, and the usual one elsewhere."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    seen: dict[str, None] = {}
    for row in edge_ops:
        seen.update(dict.fromkeys(row))
        for name in row:
            sorter.add(name)
        for before, after in pairwise(row):
            sorter.add(after, before)
    try:
        sorter.prepare()
    except CycleError:
        return tuple(seen)

    def usual(name: str) -> tuple:
        number = re.search(r"[0-9.]+$", name.partition("_")[2])
        kind = ("zero", "identity", "msa", "mlp", "other").index(operation_family(name))
        return kind, name.partition("_")[0], float(number[0]) if number else 0.0, name

    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=usual)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return tuple(order)


def _edge_labels(num_edges: int) -> list[str]:
    for num_nodes in range(1, num_edges + 1):
        edges = edge_list(num_nodes)
        if len(edges) == num_edges:
            return [rf"${source_name(s)} \rightarrow o_{{{j}}}$" for s, j in edges]
    raise ValueError(f"no encoder has {num_edges} edges; 1 node has 2, 2 have 5, 3 have 9")


def _draw_heatmap(
    axes: Axes,
    weights: Sequence[Sequence[float]],
    edge_ops: EdgeOps,
    operations: Sequence[str],
    norm: Normalize,
) -> ScalarMappable:
    mappable = ScalarMappable(norm=norm, cmap="Blues")
    pruned = {"facecolor": "#f0f0f0", "edgecolor": "#cfcfcf", "hatch": "////", "linewidth": 0}
    for row, (values, names) in enumerate(zip(weights, edge_ops, strict=True)):
        held = dict(zip(names, values, strict=True))
        for column, name in enumerate(operations):
            corner, place = (column - 0.5, row - 0.5), f"{row}-{name}"
            if name not in held:
                axes.add_patch(Rectangle(corner, 1, 1, gid=f"pruned-{place}", **pruned))
                continue
            colour = mappable.to_rgba(np.asarray(held[name]))
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, gid=f"cell-{place}"))
            light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
            style = TEXT | {"size": 8, "color": INK if light > 0.55 else "white"}
            axes.text(column, row, f"{held[name]:.2f}", gid=f"value-{place}", **style)
    axes.set_xlim(-0.5, len(operations) - 0.5)
    axes.set_ylim(len(weights) - 0.5, -0.5)
    axes.set_xticks(np.arange(len(operations) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(weights) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.set_axisbelow(False)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(operations)), [operation_label(name) for name in operations])
    axes.set_yticks(range(len(weights)), _edge_labels(len(weights)))
    for tick in axes.get_xticklabels():
        tick.set(rotation=40, ha="right", rotation_mode="anchor", size=9, family=FONT)
    for tick in axes.get_yticklabels():
        tick.set(size=11, math_fontfamily="cm")
    return mappable


def stage_heatmaps_figure(
    stages: Sequence[tuple[Sequence[Sequence[float]], EdgeOps]],
    *,
    operations: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """The operation weights of several stages side by side, with common columns and colours.

    Args:
        stages: for each, softmax(alpha), a row an edge, and the candidates of each row.
        operations: the columns, in order; by default every operation that a stage holds, in
            the first stage's order.
        titles: of the panels; by default "stage 0", "stage 1", … if there are several.
        title: of the whole figure.

    Returns:
        One panel a stage; cells of pruned candidates are hatched grey.

    Raises:
        ValueError: no stage, a number of rows that no encoder has, or a candidate that
            `operations` lacks.
    """
    if not stages:
        raise ValueError("stages must hold at least one stage, but it is empty")
    if operations is None:
        operations = _merged_operations(row for _, edge_ops in stages for row in edge_ops)
    held = {name for _, edge_ops in stages for row in edge_ops for name in row}
    if held - set(operations):
        raise ValueError(
            f"operations must name every candidate, but {sorted(held - set(operations))} are not "
            f"in {tuple(operations)}"
        )
    if titles is None:
        titles = [f"stage {s}" for s in range(len(stages))] if len(stages) > 1 else [""]
    num_edges = max(len(weights) for weights, _ in stages)
    largest = max(w for weights, _ in stages for row in weights for w in row)
    norm = Normalize(0.0, largest)

    cell_width, cell_height = 0.5, 0.36
    figure = Figure(
        figsize=(
            1.9 + len(stages) * (cell_width * len(operations) + 0.2),
            1.35 + cell_height * num_edges + (0.3 if title else 0.0),
        ),
        dpi=120,
        facecolor="white",
        layout="constrained",
    )
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.08, h_pad=0.08)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    mappables = []
    for p, (axes, (weights, edge_ops), name) in enumerate(zip(panels, stages, titles, strict=True)):
        mappables.append(_draw_heatmap(axes, weights, edge_ops, operations, norm))
        axes.set_title(name, size=11, family=FONT, color=INK)
        if p:
            axes.tick_params(labelleft=False)
    bar = figure.colorbar(mappables[-1], ax=list(panels), fraction=0.05, pad=0.02)
    bar.set_label(r"softmax($\alpha$)", size=10, family=FONT, math_fontfamily="cm")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    if title:
        figure.suptitle(title, size=12, family=FONT, color=INK)
    return figure


def heatmap_figure(
    weights: Sequence[Sequence[float]],
    edge_ops: EdgeOps,
    *,
    operations: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """The operation weights of every edge (Figure 3): `stage_heatmaps_figure` of one stage.

    Args:
        weights: softmax(alpha), a row an edge.
        edge_ops: the candidates of each row.
        operations: the columns, in order; by default every operation that an edge holds.
        title: above the map.
    """
    return stage_heatmaps_figure([(weights, edge_ops)], operations=operations, title=title)


# --- shares by epoch ------------------------------------------------------------------------


def operation_shares(epochs: Iterable[SearchEpoch]) -> dict[str, list[float]]:
    """One run for `share_figure`: the mean weights of `identity` and `zero`, an entry an epoch."""
    epochs = sorted(epochs, key=lambda event: event.epoch)
    return {
        name: [operation_share(event.weights, event.edge_ops, name) for event in epochs]
        for name in ("identity", "zero")
    }


def share_figure(
    runs: Mapping[str, Sequence[Mapping[str, Sequence[float]]]],
    *,
    stage_starts: Sequence[int] = (),
    title: str | None = None,
) -> Figure:
    """How much of the weight skips and zeros take as searches go on (Figure 2).

    Args:
        runs: by setting ("plain DARTS", "DASViT"), one mapping a seed; its "identity" and
            "zero" are mean weights over the edges, an entry an epoch (see `operation_shares`).
        stage_starts: epochs (0-based) at which a stage begins: faint vertical lines.
        title: above both panels.

    Returns:
        Two panels, identity and zero: a thin line a seed, and a bold line, the mean over the
        seeds up to the epoch that all of them reached.

    Raises:
        ValueError: no setting, or a setting without a run.
    """
    if not runs or not all(runs.values()):
        raise ValueError(
            "runs must hold at least one run for each setting, but got "
            f"{ {name: len(seeds) for name, seeds in runs.items()} }"
        )
    figure = Figure(figsize=(8.4, 3.2), dpi=120, facecolor="white", layout="constrained")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.08, h_pad=0.08)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, operation in zip(panels, ("identity", "zero"), strict=True):
        for start in stage_starts:
            if start > 0:
                axes.axvline(
                    start - 0.5, color=FAINT, linewidth=0.7, linestyle=(0, (4, 3)), zorder=0
                )
        for s, (setting, seeds) in enumerate(runs.items()):
            colour = CURVES[s % len(CURVES)]
            for run in seeds:
                axes.plot(run[operation], color=colour, linewidth=0.8, alpha=0.45)
            common = min(len(run[operation]) for run in seeds)
            mean = np.mean([run[operation][:common] for run in seeds], axis=0)
            label = f"{setting} ({len(seeds)} seed" + (")" if len(seeds) == 1 else "s)")
            axes.plot(mean, color=colour, linewidth=2.2, label=label)
        axes.set_title(operation, size=11, family=FONT, color=INK)
        axes.set_xlabel("epoch", size=10, family=FONT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02)
    panels[0].set_ylim(bottom=0.0)
    panels[0].set_ylabel("share of the weight", size=10, family=FONT)
    panels[0].legend(frameon=False, prop={"family": FONT, "size": 9})
    if title:
        figure.suptitle(title, size=12, family=FONT, color=INK)
    return figure
