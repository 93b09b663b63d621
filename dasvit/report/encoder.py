"""The drawing of one encoder (Figures 5 and 6)."""

import math
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from dasvit.report.layout import SIZES, Item, encoder_layout
from dasvit.report.style import FAINT, FONT, INK, STYLE
from dasvit.spaces.cell.genotype import Genotype

__all__ = ["encoder_figure", "operation_label"]

# Fill and outline by kind of operation.
COLOURS = {
    "msa": ("#fde4d0", "#d4691e"),
    "mlp": ("#d8e7f5", "#2b6fad"),
    "identity": ("#ddefdc", "#43904f"),
    "zero": ("#f1f1f1", "#8a8a8a"),
    "other": ("#e9e0f3", "#7552a3"),
}
MARGIN = 0.16  # this and the arrows' heads: inches
RADIUS = SIZES["sum"][0] / 2
LINE: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.15}
CENTRED: dict[str, Any] = {"ha": "center", "zorder": 6}
HEAD_LENGTH = 0.095
HEAD = f"-|>,head_length={HEAD_LENGTH},head_width=0.04"


def operation_label(operation: str) -> str:
    """What a reader sees for an operation: `msa_h8` is "MSA 8 heads", `mlp_r0.5` "MLP ×0.5"."""
    family, _, setting = operation.partition("_")
    if family == "msa" and setting.startswith("h"):
        return f"MSA {setting[1:]} head" + ("" if setting == "h1" else "s")
    if family == "mlp" and setting.startswith("r"):
        return f"MLP ×{setting[1:]}"
    return f"{family} {setting[0]}={setting[1:]}" if setting else family


@cache
def _text_width(text: str, size: float) -> float:
    """Width in inches, from the font's outlines: needs no renderer."""
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family=FONT))
    return float(path.get_extents().width) / 72


@matplotlib.rc_context(STYLE)
def encoder_figure(genotype: Genotype, title: str | None = None) -> Figure:
    """A drawing of one encoder, left to right, as in Figures 5 and 6.

    Inputs are grey boxes, operations coloured boxes on their edges, nodes circles with a "+",
    the output the sum of the nodes (Eq. 22). An input that no edge reads is drawn faint.

    Args:
        genotype: the encoder.
        title: above the drawing.

    Returns:
        A figure as large as the drawing needs, axes in inches.
    """
    widest = max(_text_width(operation_label(op), 10) for op in genotype.operations)
    items, links = encoder_layout(genotype, box_width=0.26 + widest)
    left, right = -MARGIN, max(i.x + i.width / 2 for i in items) + MARGIN
    bottom, top = min(i.bottom for i in items) - MARGIN, max(i.top for i in items) + MARGIN
    if title:
        top += 0.3
        extra = max(0.0, _text_width(title, 12) + 2 * MARGIN - (right - left))
        left, right = left - extra / 2, right + extra / 2
    figure = Figure(figsize=(right - left, top - bottom))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    if title:
        place = ((left + right) / 2, top - MARGIN)
        axes.text(*place, title, size=12, va="top", gid="title", **CENTRED)
    for (u, v), angle in links.items():
        _draw_link(axes, items[u], items[v], angle, f"{u}-{v}")
    read = {u for u, _ in links}
    for i, item in enumerate(items):
        _draw_item(axes, item, i, INK if i in read or item.kind == "output" else FAINT)
    return figure


def _draw_link(axes: Axes, start: Item, end: Item, angle: float, name: str) -> None:
    """A line that leaves `start` on its right and enters `end` on its left."""
    x0, y0 = start.x + start.width / 2, start.y
    direction = np.array([-math.cos(angle), math.sin(angle)])  # from the end, outwards
    tip = np.array([end.x - end.width / 2, end.y])
    if end.kind in ("node", "sum"):
        tip = np.array([end.x, end.y]) + direction * RADIUS
    lane = end.kind == "lane"  # then the line goes on, straight through the column
    stop = tip if lane else tip + direction * HEAD_LENGTH
    goal = (end.x + end.width / 2, end.y) if lane else tuple(tip)
    reach = 0.5 * (tip[0] - x0)
    points = [(x0, y0), (x0 + reach, y0), tuple(stop + direction * reach * 0.8), tuple(stop), goal]
    path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO])
    style = LINE | {"zorder": 2, "gid": f"line-{name}"}
    if lane:
        axes.add_patch(PathPatch(path, fill=False, **style))
    else:
        style |= {"arrowstyle": HEAD, "mutation_scale": 72, "joinstyle": "miter"}
        axes.add_patch(FancyArrowPatch(path=path, facecolor=INK, **style))


def _draw_item(axes: Axes, item: Item, index: int, colour: str) -> None:
    x, y, kind = item.x, item.y, item.kind
    style = LINE | {"zorder": 4, "gid": f"{kind}-{index}"}
    if kind in ("node", "sum"):
        axes.add_patch(Circle((x, y), RADIUS, facecolor="white", **style))
        arm = 0.5 * RADIUS
        ends = [(x - arm, y), (x + arm, y), (x, y - arm), (x, y + arm)]
        plus = Path(ends, [Path.MOVETO, Path.LINETO] * 2)
        axes.add_patch(PathPatch(plus, fill=False, **style | {"gid": f"plus-{index}"}))
        if item.text:
            place = (x, y + RADIUS + 0.05)
            axes.text(*place, item.text, size=12, va="bottom", gid=f"label-{index}", **CENTRED)
    elif kind != "lane":
        height = item.top - item.bottom
        label, size, vertical, corner = item.text, 12, "center", height / 2
        style |= {"facecolor": "#f6f6f4", "edgecolor": colour}
        if kind == "box":
            label, size, vertical, corner = operation_label(item.text), 10, "center_baseline", 0.07
            family = item.text.partition("_")[0]
            style["facecolor"], style["edgecolor"] = COLOURS.get(family, COLOURS["other"])
            style["linestyle"] = (0, (3, 2)) if family == "zero" else "-"
        place, corners = (x - item.width / 2, item.bottom), f"round,pad=0,rounding_size={corner}"
        axes.add_patch(FancyBboxPatch(place, item.width, height, boxstyle=corners, **style))
        text: dict[str, Any] = {"size": size, "va": vertical, "color": colour}
        axes.text(x, y - 0.005, label, gid=f"label-{index}", **CENTRED | text)
