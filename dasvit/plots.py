"""Figures: the encoder (Figures 5, 6), operation weights (Figure 3), shares by epoch (Figure 2).

Values in, a matplotlib `Figure` out: no pyplot, no global state, equal input gives an equal
figure. Nothing here reads or writes a file but `save_figure` and `save_encoder`.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from pathlib import Path as FilePath
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from dasvit.genotype import NUM_INPUTS, Genotype, edge_list, source_name
from dasvit.metrics import EdgeOps, SearchEpoch, operation_share

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
# Colours of the curves, distinct for colour-blind readers (Okabe and Ito).
CURVES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.15, "zorder": 2}
TEXT: dict[str, Any] = {
    "family": FONT,
    "math_fontfamily": "cm",
    "color": INK,
    "ha": "center",
    "va": "center_baseline",
    "zorder": 6,
}

# Lengths of the encoder's drawing, in inches.
BOX_HEIGHT = 0.36
CIRCLE_RADIUS = 0.155
TERMINAL_WIDTH = 0.56
LABEL_HEIGHT = 0.27  # of a node's name above its circle
PADDING = 0.15  # between neighbours in a column
MARGIN = 0.16
ARROW = 0.095


def _kind(operation: str) -> str:
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


# --- the encoder: a layered drawing, left to right ------------------------------------------
#
# Columns alternate: inputs, the boxes of the first nodes, those nodes, the boxes of the next
# nodes, and so on, then the sum and the output. A value that is read further right runs through
# the columns between as a "lane", straight and with a place of its own, so no line can touch a
# box; lines bend in the gaps between columns only.


@dataclass(slots=True)
class _Item:
    """One thing in one column.

    Attributes:
        kind: input, box, node, sum, output, or lane (a line that passes the column).
        above, below: how far it reaches from its height y, in inches.
        width: in inches.
    """

    kind: str
    column: int
    above: float
    below: float
    width: float
    text: str
    operation: str
    x: float = 0.0
    y: float = 0.0


@dataclass(slots=True)
class _Drawing:
    """Items by column, top to bottom, and links `(from, to)` between neighbouring columns."""

    items: list[_Item] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)

    def add(self, kind: str, column: int, text: str = "", operation: str = "") -> int:
        if kind == "lane":
            half, width = 0.0, 0.0
        elif kind in ("node", "sum"):
            half, width = CIRCLE_RADIUS, 2 * CIRCLE_RADIUS
        else:
            half, width = BOX_HEIGHT / 2, TERMINAL_WIDTH
        above = half + (LABEL_HEIGHT if kind == "node" else 0.0)
        self.items.append(_Item(kind, column, above, half, width, text, operation))
        while len(self.columns) <= column:
            self.columns.append([])
        self.columns[column].append(len(self.items) - 1)
        return len(self.items) - 1


def _build(genotype: Genotype) -> _Drawing:
    drawing = _Drawing()
    depth = [0] * NUM_INPUTS
    for edges in genotype.nodes:
        depth.append(1 + max(depth[e.source] for e in edges))
    values = [  # the item of each source: inputs, then nodes
        drawing.add("input" if s < NUM_INPUTS else "node", 2 * depth[s], f"${source_name(s)}$")
        for s in range(len(depth))
    ]
    readers: list[list[int]] = [[] for _ in values]
    width = 0.26 + max(_text_width(operation_label(op), 10) for op in genotype.operations)
    for node, edges in zip(values[NUM_INPUTS:], genotype.nodes, strict=True):
        for edge in edges:
            label = operation_label(edge.operation)
            box = drawing.add("box", drawing.items[node].column - 1, label, edge.operation)
            drawing.items[box].width = width
            drawing.links.append((box, node))
            readers[edge.source].append(box)

    end = 2 * max(depth) + 1
    if len(genotype.nodes) == 1:
        readers[NUM_INPUTS].append(drawing.add("output", end, "$e_k$"))
    else:
        total = drawing.add("sum", end)
        drawing.links.append((total, drawing.add("output", end + 1, "$e_k$")))
        for node_readers in readers[NUM_INPUTS:]:
            node_readers.append(total)

    # One lane a value, from which all its readers branch off.
    for value, its_readers in zip(values, readers, strict=True):
        here = value
        last = max((drawing.items[r].column for r in its_readers), default=0)
        for column in range(drawing.items[value].column + 1, last + 1):
            targets = [r for r in its_readers if drawing.items[r].column == column]
            if column < last:
                targets.append(drawing.add("lane", column))
            drawing.links.extend((here, target) for target in targets)
            here = targets[-1]
    return drawing


def _crossings(drawing: _Drawing, columns: Sequence[Sequence[int]]) -> int:
    rank = {item: r for column in columns for r, item in enumerate(column)}
    count = 0
    for column in range(len(columns) - 1):
        links = [(rank[u], rank[v]) for u, v in drawing.links if drawing.items[u].column == column]
        count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(links, 2))
    return count


def _orders(drawing: _Drawing) -> list[list[list[int]]]:
    """A few orders of the columns' items with the fewest crossings found (barycentre sweeps)."""
    neighbours: dict[int, dict[int, list[int]]] = {-1: {}, 1: {}}
    for u, v in drawing.links:
        neighbours[-1].setdefault(v, []).append(u)
        neighbours[1].setdefault(u, []).append(v)
    generator = random.Random(0)
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for _ in range(10):
        columns = [list(column) for column in drawing.columns]
        # The first column stays: a drawing and its mirror image have the same crossings.
        for column in columns[1:]:
            generator.shuffle(column)
        for _ in range(6):
            for side in (-1, 1):
                inner = range(1, len(columns)) if side < 0 else range(len(columns) - 2, 0, -1)
                for c in inner:
                    rank = {item: r for r, item in enumerate(columns[c + side])}
                    near = neighbours[side]

                    def centre(item: int) -> float:
                        ranks = [rank[n] for n in near.get(item, ())]  # noqa: B023
                        return sum(ranks) / len(ranks) if ranks else 0.0

                    columns[c].sort(key=centre)
        best = _crossings(drawing, columns)
        improved = True
        while improved:
            improved = False
            for column in columns[1:]:
                for r in range(len(column) - 1):
                    column[r], column[r + 1] = column[r + 1], column[r]
                    count = _crossings(drawing, columns)
                    if count < best:
                        best, improved = count, True
                    else:
                        column[r], column[r + 1] = column[r + 1], column[r]
        found[tuple(map(tuple, columns))] = best
    fewest = min(found.values())
    return [[list(c) for c in order] for order, count in found.items() if count == fewest][:6]


def _place(drawing: _Drawing, columns: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
    """Heights of all items (inches, up) for given orders, and what they cost.

    Absolute differences keep lines straight, squared ones centre a node on its boxes. Both are
    solved as reweighted least squares under the columns' minimal distances, which enter as
    stiff one-sided springs.
    """
    items, count = drawing.items, len(drawing.items)
    gaps = [
        (a, b, items[a].below + items[b].above + PADDING)
        for column in columns
        for a, b in pairwise(column)
    ]
    incoming = Counter(v for _, v in drawing.links)
    links = []  # from, to, weight of the absolute and of the squared difference
    for u, v in drawing.links:
        if items[v].kind in ("node", "sum") and incoming[v] > 1:
            links.append((u, v, 0.7, 0.5))
        else:
            links.append((u, v, 1.0 if items[v].kind == "box" else 4.0, 0.0))
    y = np.zeros(count)
    for column in columns:
        for r, item in enumerate(column):
            y[item] = (len(column) - 1) / 2 - r
    for step in range(60):
        matrix = np.eye(count) * 1e-6
        target = np.zeros(count)
        smoothing = max(0.5 * 0.85**step, 0.002)
        springs = [
            (u, v, absolute / max(abs(y[u] - y[v]), smoothing) + squared, 0.0)
            for u, v, absolute, squared in links
        ]
        springs += [(a, b, 1e4, d) for a, b, d in gaps if y[a] - y[b] < d + 1e-9]
        for u, v, w, d in springs:  # w · (y_u - y_v - d)²
            matrix[u, u] += w
            matrix[v, v] += w
            matrix[u, v] -= w
            matrix[v, u] -= w
            target[u] += w * d
            target[v] -= w * d
        y = y + 0.7 * (np.linalg.solve(matrix, target) - y)
    for u, v in sorted(drawing.links, key=lambda link: items[link[0]].column):
        if abs(y[u] - y[v]) < 0.02:  # what is left of the smoothing
            y[v] = y[u]
    cost = sum(absolute * abs(y[u] - y[v]) for u, v, absolute, _ in links)
    return np.round(y, 3), float(cost + 0.5 * np.ptp(y))


def _layout(genotype: Genotype) -> _Drawing:
    drawing = _build(genotype)
    placed = [(*_place(drawing, order), order) for order in _orders(drawing)]
    y, _, drawing.columns = min(placed, key=lambda each: round(each[1], 2))
    for item, height in zip(drawing.items, y.tolist(), strict=True):
        item.y = height
    x = 0.0
    for c, column in enumerate(drawing.columns):
        width = max(drawing.items[i].width for i in column)
        if c:
            rise = max(
                abs(drawing.items[u].y - drawing.items[v].y)
                for u, v in drawing.links
                if drawing.items[v].column == c
            )
            x += min(0.38 + 0.3 * rise, 1.3)
        for i in column:
            drawing.items[i].x = x + width / 2
            if drawing.items[i].kind == "lane":
                drawing.items[i].width = width
        x += width
    return drawing


def _ports(drawing: _Drawing) -> dict[tuple[int, int], float]:
    """At which angle each line meets its circle: radians above the horizontal, on its left."""
    ports: dict[tuple[int, int], float] = {}
    for v, item in enumerate(drawing.items):
        if item.kind not in ("node", "sum"):
            continue
        links = [link for link in drawing.links if link[1] == v]
        links.sort(key=lambda link: drawing.items[link[0]].y)
        wanted = [
            math.radians(42) * math.tanh(1.6 * (drawing.items[u].y - item.y)) for u, _ in links
        ]
        step = math.radians(28)
        flattest = min(range(len(links)), key=lambda i: abs(wanted[i]))
        for i in range(flattest + 1, len(links)):
            wanted[i] = max(wanted[i], wanted[i - 1] + step)
        for i in range(flattest - 1, -1, -1):
            wanted[i] = min(wanted[i], wanted[i + 1] - step)
        largest = max(map(abs, wanted))
        shrink = min(1.0, math.radians(54) / largest) if largest else 1.0
        ports.update({link: angle * shrink for link, angle in zip(links, wanted, strict=True)})
    return ports


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
    drawing = _layout(genotype)
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
    ports = _ports(drawing)
    for link in drawing.links:
        _draw_link(axes, items[link[0]], items[link[1]], ports.get(link, 0.0), link)
    read = {u for u, _ in drawing.links}
    for i, item in enumerate(items):
        _draw_item(axes, item, i, read=i in read)
    return figure


def _draw_link(axes: Axes, start: _Item, end: _Item, angle: float, link: tuple[int, int]) -> None:
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


def _draw_item(axes: Axes, item: _Item, index: int, *, read: bool) -> None:
    if item.kind == "lane":
        return
    if item.kind in ("node", "sum"):
        _draw_sum(axes, item, index)
        return
    height = item.above + item.below
    style = LINE | {"zorder": 4}
    if item.kind == "box":
        kind = _kind(item.operation)
        style["facecolor"], style["edgecolor"] = COLOURS[kind]
        style["linestyle"] = (0, (3, 2)) if kind == "zero" else "-"
        outline = _rounded_box(item.x, item.y, item.width, height, 0.07)
        text = TEXT | {"size": 10}
    else:
        colour = INK if read or item.kind == "output" else FAINT
        style |= {"facecolor": "#f6f6f4", "edgecolor": colour}
        outline = _rounded_box(item.x, item.y, item.width, height, height / 2)
        text = TEXT | {"size": 12, "color": colour, "va": "center"}
    axes.add_patch(PathPatch(outline, gid=f"{item.kind}-{index}", **style))
    axes.text(item.x, item.y - 0.005, item.text, gid=f"label-{index}", **text)


def _draw_sum(axes: Axes, item: _Item, index: int) -> None:
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


def save_figure(figure: Figure, stem: str | FilePath) -> tuple[FilePath, FilePath]:
    """Write `<stem>.png` (200 dpi) and `<stem>.svg`; equal figures give equal bytes.

    Args:
        stem: path without suffix (a dot in its name is part of the name); its folder is made.

    Returns:
        Both paths.
    """
    stem = FilePath(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
    with matplotlib.rc_context({"svg.hashsalt": "dasvit"}):  # else identifiers are random
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def save_encoder(
    genotype: Genotype, stem: str | FilePath, title: str | None = None
) -> tuple[FilePath, FilePath]:
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
        kind = ("zero", "identity", "msa", "mlp", "other").index(_kind(name))
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
