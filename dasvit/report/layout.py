"""Where the parts of an encoder's drawing go: columns, heights and bends. Values only.

A layered drawing, left to right. Columns alternate: inputs, the boxes of the first nodes, those
nodes, the boxes of the next nodes, and so on, then the sum and the output. A value that is read
further right runs through the columns between as a "lane", straight and with a place of its own,
so no line can touch a box; lines bend in the gaps between columns only.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np

from dasvit.spaces.cell.genotype import NUM_INPUTS, Genotype, source_name

__all__ = ["CIRCLE_RADIUS", "Drawing", "Item", "arrival_angles", "encoder_layout"]

# Lengths in inches.
BOX_HEIGHT = 0.36
CIRCLE_RADIUS = 0.155
TERMINAL_WIDTH = 0.56
LABEL_HEIGHT = 0.27  # of a node's name above its circle
PADDING = 0.15  # between neighbours in a column


@dataclass(slots=True)
class Item:
    """One thing in one column.

    Attributes:
        kind: input, box, node, sum, output, or lane (a line that passes the column).
        column: from the left, from 0.
        above, below: how far it reaches from its height y, in inches.
        width: in inches.
        text: a value's name, as mathtext; a box has none.
        operation: of a box.
        x, y: of its middle, in inches, to the right and up.
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
class Drawing:
    """Items by column, top to bottom, and links `(from, to)` between neighbouring columns."""

    items: list[Item] = field(default_factory=list)
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
        self.items.append(Item(kind, column, above, half, width, text, operation))
        while len(self.columns) <= column:
            self.columns.append([])
        self.columns[column].append(len(self.items) - 1)
        return len(self.items) - 1


def _build(genotype: Genotype, box_width: float) -> Drawing:
    drawing = Drawing()
    depth = [0] * NUM_INPUTS
    for edges in genotype.nodes:
        depth.append(1 + max(depth[e.source] for e in edges))
    values = [  # the item of each source: inputs, then nodes
        drawing.add("input" if s < NUM_INPUTS else "node", 2 * depth[s], f"${source_name(s)}$")
        for s in range(len(depth))
    ]
    readers: list[list[int]] = [[] for _ in values]
    for node, edges in zip(values[NUM_INPUTS:], genotype.nodes, strict=True):
        for edge in edges:
            column = drawing.items[node].column - 1
            box = drawing.add("box", column, operation=edge.operation)
            drawing.items[box].width = box_width
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


def _crossings(drawing: Drawing, columns: Sequence[Sequence[int]]) -> int:
    rank = {item: r for column in columns for r, item in enumerate(column)}
    count = 0
    for column in range(len(columns) - 1):
        links = [(rank[u], rank[v]) for u, v in drawing.links if drawing.items[u].column == column]
        count += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(links, 2))
    return count


def _orders(drawing: Drawing) -> list[list[list[int]]]:
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


def _place(drawing: Drawing, columns: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
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


def encoder_layout(genotype: Genotype, *, box_width: float) -> Drawing:
    """The drawing of an encoder, everything in its place; equal input gives equal places.

    Args:
        genotype: of any number of nodes.
        box_width: of an operation's box, in inches.
    """
    drawing = _build(genotype, box_width)
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


def arrival_angles(drawing: Drawing) -> dict[tuple[int, int], float]:
    """At which angle each link meets its circle: radians above the horizontal, on its left."""
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
