"""Figures of report.html: values in, a matplotlib figure out. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dasvit.report.events import operation_share
from dasvit.report.plots import CURVES

__all__ = ["Shares", "pareto_front", "scatter_figure", "shares", "skip_figure"]

Shares = Mapping[str, Sequence[float]]


def shares(rows: Sequence[Mapping]) -> dict[str, list[float]]:
    """Mean weights of `identity` and `zero` by epoch, from the rows of a search's alpha trace."""
    return {
        name: [operation_share(row["weights"], row["edge_ops"], name) for row in rows]
        for name in ("identity", "zero")
    }


def skip_figure(groups: Mapping[str, Sequence[Shares]], stage_starts: Sequence[int]) -> Figure:
    """Two panels, identity and zero: a thin line a search, a bold one a group's mean.

    Args:
        groups: searches by name, each from `shares`, at least one in each group.
        stage_starts: epochs at which a stage begins.
    """
    figure = Figure(figsize=(9.0, 3.2), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, operation in zip(panels, ("identity", "zero"), strict=True):
        for start in stage_starts:
            axes.axvline(start - 0.5, color="#cccccc", linewidth=0.7, linestyle="--", zorder=0)
        for colour, (name, runs) in zip(CURVES, groups.items(), strict=False):
            for run in runs:
                axes.plot(run[operation], color=colour, linewidth=0.7, alpha=0.35)
            common = min(len(run[operation]) for run in runs)
            mean = np.mean([run[operation][:common] for run in runs], axis=0)
            axes.plot(mean, color=colour, linewidth=2.2, label=f"{name} ({len(runs)})")
        axes.set_title(operation, size=11)
        _plain(axes, "epoch", "share of the weight" if operation == "identity" else "")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylim(bottom=0.0)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def scatter_figure(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    front: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Points by group, and a stepped line through a Pareto front, given from left to right."""
    figure = Figure(figsize=(6.4, 3.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    if front:
        axes.step(*zip(*front, strict=True), where="post", color="#888888", linewidth=1.0, zorder=0)
    for colour, (name, pairs) in zip(CURVES, points.items(), strict=False):
        if pairs:
            axes.scatter(*zip(*pairs, strict=True), s=34, color=colour, label=name, alpha=0.85)
    _plain(axes, x_label, y_label)
    axes.legend(frameon=False, fontsize=9)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score) pairs those that no other one beats: less cost and no lower score, or more
    score and no higher cost; by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _plain(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, size=10)
    axes.set_ylabel(y_label, size=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.margins(x=0.04, y=0.08)
