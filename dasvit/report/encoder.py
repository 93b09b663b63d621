"""The drawing of one encoder (Figures 5 and 6), and the style that all figures share."""

import math
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from dasvit.report.layout import CIRCLE_RADIUS, Item, arrival_angles, encoder_layout
from dasvit.spaces.cell.genotype import Genotype

__all__ = ["FAINT", "FONT", "INK", "TEXT", "encoder_figure", "operation_family", "operation_label"]

FONT = "DejaVu Sans"  # ships with matplotlib: the same letters on every machine
INK = "#333333"
FAINT = "#b5b5b5"
# Fill and outline by kind of operation.
COLOURS = {
    "msa": ("#fde4d0", "#d4691e"),
    "mlp": ("#d8e7f5", "#2b6fad"),
    "identity": ("#ddefdc", "#43904f"),
    "zero": ("#f1f1f1", "#8a8a8a"),
    "other": ("#e9e0f3", "#7552a3"),
}
LINE: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.15, "zorder": 2}
TEXT: dict[str, Any] = {
    "family": FONT,
    "math_fontfamily": "cm",
    "color": INK,
    "ha": "center",
    "va": "center_baseline",
    "zorder": 6,
}

# Lengths in inches.
MARGIN = 0.16
ARROW = 0.095


def operation_family(operation: str) -> str:
    """The family that gives an operation its colour: a key of `COLOURS`."""
    family = operation.partition("_")[0]
    return family if family in COLOURS else "other"


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


def encoder_figure(genotype: Genotype, title: str | None = None) -> Figure:
    """A drawing of one encoder, left to right, as in Figures 5 and 6.

    Inputs are grey boxes, operations coloured boxes on their edges, nodes circles with a "+",
    the output the sum of the nodes (Eq. 22). An input that no edge reads is drawn faint.

    Args:
        genotype: of any number of nodes.
        title: above the drawing.

    Returns:
        A figure as large as the drawing needs, axes in inches.
    """
    widest = max(_text_width(operation_label(op), 10) for op in genotype.operations)
    drawing = encoder_layout(genotype, box_width=0.26 + widest)
    items = drawing.items
    left, bottom = -MARGIN, min(i.y - i.below for i in items) - MARGIN
    right = max(i.x + i.width / 2 for i in items) + MARGIN
    top = max(i.y + i.above for i in items) + MARGIN
    if title:
        top += 0.3
        extra = _text_width(title, 12) + 2 * MARGIN - (right - left)
        if extra > 0:
            left, right = left - extra / 2, right + extra / 2

    figure = Figure(figsize=(right - left, top - bottom), dpi=120, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    if title:
        style = TEXT | {"va": "top"}
        axes.text((left + right) / 2, top - MARGIN, title, size=12, gid="title", **style)
    ports = arrival_angles(drawing)
    for link in drawing.links:
        _draw_link(axes, items[link[0]], items[link[1]], ports.get(link, 0.0), link)
    read = {u for u, _ in drawing.links}
    for i, item in enumerate(items):
        _draw_item(axes, item, i, read=i in read)
    return figure


def _draw_link(axes: Axes, start: Item, end: Item, angle: float, link: tuple[int, int]) -> None:
    """A line that leaves `start` on its right and enters `end` on its left."""
    x0, y0 = start.x + start.width / 2, start.y
    direction = np.array([-math.cos(angle), math.sin(angle)])  # from the end, outwards
    if end.kind in ("node", "sum"):
        tip = np.array([end.x, end.y]) + direction * CIRCLE_RADIUS
    else:
        tip = np.array([end.x - end.width / 2, end.y])
    arrow = end.kind != "lane"
    stop = tip + direction * (ARROW * 0.8 if arrow else 0.0)
    reach = 0.5 * (tip[0] - x0)
    points = [(x0, y0), (x0 + reach, y0), tuple(stop + direction * reach * 0.8), tuple(stop)]
    codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    if end.kind == "lane":  # and on, straight through the column
        points.append((end.x + end.width / 2, end.y))
        codes.append(Path.LINETO)
    name = f"{link[0]}-{link[1]}"
    axes.add_patch(PathPatch(Path(points, codes), fill=False, gid=f"line-{name}", **LINE))
    if arrow:
        side = np.array([-direction[1], direction[0]]) * ARROW * 0.42
        base = tip + direction * ARROW
        corners = [tuple(tip), tuple(base + side), tuple(base - side)]
        axes.add_patch(Polygon(corners, facecolor=INK, zorder=3, gid=f"arrow-{name}"))


def _draw_item(axes: Axes, item: Item, index: int, *, read: bool) -> None:
    if item.kind == "lane":
        return
    if item.kind in ("node", "sum"):
        _draw_sum(axes, item, index)
        return
    height = item.above + item.below
    style = LINE | {"zorder": 4}
    if item.kind == "box":
        kind = operation_family(item.operation)
        style["facecolor"], style["edgecolor"] = COLOURS[kind]
        style["linestyle"] = (0, (3, 2)) if kind == "zero" else "-"
        outline = _rounded_box(item.x, item.y, item.width, height, 0.07)
        label, text = operation_label(item.operation), TEXT | {"size": 10}
    else:
        colour = INK if read or item.kind == "output" else FAINT
        style |= {"facecolor": "#f6f6f4", "edgecolor": colour}
        outline = _rounded_box(item.x, item.y, item.width, height, height / 2)
        label, text = item.text, TEXT | {"size": 12, "color": colour, "va": "center"}
    axes.add_patch(PathPatch(outline, gid=f"{item.kind}-{index}", **style))
    axes.text(item.x, item.y - 0.005, label, gid=f"label-{index}", **text)


def _draw_sum(axes: Axes, item: Item, index: int) -> None:
    x, y, arm = item.x, item.y, 0.5 * CIRCLE_RADIUS
    style = LINE | {"zorder": 4}
    axes.add_patch(
        Circle((x, y), CIRCLE_RADIUS, facecolor="white", gid=f"{item.kind}-{index}", **style)
    )
    for ends in ([(x - arm, y), (x + arm, y)], [(x, y - arm), (x, y + arm)]):
        axes.add_patch(PathPatch(Path(ends), fill=False, gid=f"plus-{index}", **style))
    if item.text:
        style = TEXT | {"size": 12, "va": "bottom"}
        axes.text(x, y + CIRCLE_RADIUS + 0.05, item.text, gid=f"label-{index}", **style)


def _rounded_box(x: float, y: float, width: float, height: float, radius: float) -> Path:
    """Outline of a box around (x, y), its corners quarter circles."""
    points = []
    for quarter, (sign_x, sign_y) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        corner = (x + sign_x * (width / 2 - radius), y + sign_y * (height / 2 - radius))
        arc = Path.arc(90 * quarter, 90 * quarter + 90, n=2)
        points.append(np.asarray(arc.vertices) * radius + corner)
    vertices = np.concatenate([*points, points[0][:1]])
    arc_codes = np.asarray(arc.codes)
    codes = np.tile(arc_codes, 4)
    codes[:: len(arc_codes)] = Path.LINETO
    codes[0] = Path.MOVETO
    return Path(vertices, [*codes, Path.CLOSEPOLY])
