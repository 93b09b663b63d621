"""Where the parts of an encoder's drawing go. Values only.

A layered drawing, left to right. Columns alternate: inputs, the boxes of the first nodes, those
nodes, the boxes of the next nodes, and so on, then the sum and the output. A value that is read
further right runs through the columns between as a "lane" with a place of its own, so no line
touches a box; lines bend in the gaps between columns only.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from scipy.optimize import linprog

from dasvit.spaces.cell.genotype import NUM_INPUTS, Genotype, source_name

__all__ = ["PADDING", "SIZES", "Item", "encoder_layout"]

# In inches: width of each kind of item, and how far it reaches above and below its middle.
SIZES = {
    "input": (0.56, 0.18, 0.18),
    "box": (0.0, 0.18, 0.18),  # as wide as its text
    "node": (0.31, 0.425, 0.155),  # its name stands above the circle
    "sum": (0.31, 0.155, 0.155),
    "output": (0.56, 0.18, 0.18),
    "lane": (0.0, 0.0, 0.0),  # as wide as its column
}
PADDING = 0.15  # between neighbours in a column
STARTS = 30  # random orders of the columns that are tried
SOLVED = 8  # of those with the fewest crossings

Link = tuple[int, int]  # from one item to another, in the next column
Columns = tuple[tuple[int, ...], ...]  # items from top to bottom


@dataclass(slots=True)
class Item:
    """One thing in one column: its kind (a key of `SIZES`), an operation's name or a value's as
    mathtext, its width, and its middle (x, y) to the right and up, in inches."""

    kind: str
    column: int
    text: str
    width: float
    x: float = 0.0
    y: float = 0.0

    @property
    def bottom(self) -> float:
        return self.y - SIZES[self.kind][2]

    @property
    def top(self) -> float:
        return self.y + SIZES[self.kind][1]


def encoder_layout(genotype: Genotype, *, box_width: float) -> tuple[list[Item], dict[Link, float]]:
    """The drawing of an encoder, everything in its place; equal input gives equal places.

    Args:
        genotype: the encoder.
        box_width: of an operation's box, in inches.

    Returns:
        The items, and the links with the angle at which each meets a circle: radians above the
        horizontal, on the circle's left.
    """
    items, links = _build(genotype, box_width)
    generator = random.Random(0)
    orders = {_order(items, links, generator) for _ in range(STARTS)}
    ranked = sorted((_crossings(items, links, order), order) for order in orders)
    fewest = [order for count, order in ranked if count == ranked[0][0]][:SOLVED]
    _, heights, columns = min((*_heights(items, links, order), order) for order in fewest)
    x = 0.0
    for c, column in enumerate(columns):
        width = max(items[i].width for i in column)
        rises = [abs(heights[u] - heights[v]) for u, v in links if items[v].column == c]
        x += min(0.38 + 0.3 * max(rises), 1.3) if c else 0.0  # steep lines need a wider gap
        for i in column:
            items[i].x, items[i].y = x + width / 2, heights[i]
            items[i].width = width if items[i].kind == "lane" else items[i].width
        x += width
    angles = dict.fromkeys(links, 0.0)
    for v, item in enumerate(items):
        if item.kind in ("node", "sum"):
            ends = sorted((u for u, w in links if w == v), key=lambda u: items[u].y)
            step = math.radians(min(34.0, 108.0 / max(1, len(ends) - 1)))
            angles |= {(u, v): step * (i - (len(ends) - 1) / 2) for i, u in enumerate(ends)}
    return items, angles


def _build(genotype: Genotype, box_width: float) -> tuple[list[Item], list[Link]]:
    items: list[Item] = []
    links: list[Link] = []

    def add(kind: str, column: int, text: str = "") -> int:
        width = box_width if kind == "box" else SIZES[kind][0]
        items.append(Item(kind, column, text, width))
        return len(items) - 1

    depth = [0] * NUM_INPUTS
    for edges in genotype.nodes:
        depth.append(1 + max(depth[e.source] for e in edges))
    values = [  # the item of each source: inputs, then nodes
        add("input" if s < NUM_INPUTS else "node", 2 * d, f"${source_name(s)}$")
        for s, d in enumerate(depth)
    ]
    readers: list[list[int]] = [[] for _ in values]
    for node, edges in zip(values[NUM_INPUTS:], genotype.nodes, strict=True):
        for edge in edges:
            links.append((add("box", items[node].column - 1, edge.operation), node))
            readers[edge.source].append(links[-1][0])
    several = len(genotype.nodes) > 1
    end = add("sum" if several else "output", 2 * max(depth) + 1, "" if several else "$e_k$")
    if several:
        links.append((end, add("output", items[end].column + 1, "$e_k$")))
    for node_readers in readers[NUM_INPUTS:]:
        node_readers.append(end)
    for here, its_readers in zip(values, readers, strict=True):
        # One lane per value, from which all its readers branch off.
        last = max((items[r].column for r in its_readers), default=0)
        for column in range(items[here].column + 1, last + 1):
            targets = [r for r in its_readers if items[r].column == column]
            if column < last:
                targets.append(add("lane", column))
            links.extend((here, target) for target in targets)
            here = targets[-1]
    return items, links


def _order(items: Sequence[Item], links: Sequence[Link], generator: random.Random) -> Columns:
    """The columns with few crossings: from a random order, each item is moved near the middle of
    its neighbours."""
    columns: list[list[int]] = [[] for _ in range(1 + max(item.column for item in items))]
    for i in generator.sample(range(len(items)), len(items)):
        columns[items[i].column].append(i)
    columns[0].sort()  # a drawing and its mirror image have the same crossings
    near: list[list[int]] = [[] for _ in items]
    for u, v in links:
        near[u].append(v)
        near[v].append(u)
    inner = range(1, len(columns) - 1)
    to_the_right = [(c, c - 1) for c in (*inner, len(columns) - 1)]
    for c, beside in (to_the_right + [(c, c + 1) for c in reversed(inner)]) * 4:
        rank = {item: r for r, item in enumerate(columns[beside])}
        columns[c].sort(key=lambda i: np.mean([rank[n] for n in near[i] if n in rank] or 0.0))
    return tuple(map(tuple, columns))


def _crossings(items: Sequence[Item], links: Collection[Link], columns: Columns) -> int:
    rank = {item: r for column in columns for r, item in enumerate(column)}
    return sum(
        items[a].column == items[c].column and (rank[a] - rank[c]) * (rank[b] - rank[d]) < 0
        for (a, b), (c, d) in combinations(links, 2)
    )


def _heights(
    items: Sequence[Item], links: Collection[Link], columns: Columns
) -> tuple[float, list[float]]:
    """How much a drawing with these columns bends, and the heights of its items.

    A linear program: the sum of all bends, of how far circles lie from the middle of what enters
    them, and (a little) of all heights is least, under the least distances within the columns.
    """
    unit = np.eye(len(items))
    # The weighted absolute values that are added up, each of a linear form of the heights.
    straight = {"lane": 4.0, "output": 4.0}
    forms = [(straight.get(items[v].kind, 1.0), unit[u] - unit[v]) for u, v in links]
    for v, item in enumerate(items):
        forms.append((0.03, unit[v]))
        if item.kind in ("node", "sum"):
            forms.append((1.5, unit[v] - unit[[u for u, w in links if w == v]].mean(axis=0)))
    costs, rows = (np.array(part) for part in zip(*forms, strict=True))
    apart = [pair for column in columns for pair in pairwise(column)]
    order = np.array([unit[below] - unit[above] for above, below in apart])
    distances = [SIZES[items[a].kind][2] + SIZES[items[b].kind][1] + PADDING for a, b in apart]
    bound = np.eye(len(rows))
    least = linprog(
        np.r_[np.zeros(len(items)), costs],
        A_ub=np.block(
            [[rows, -bound], [-rows, -bound], [order, np.zeros((len(apart), len(rows)))]]
        ),
        b_ub=np.r_[np.zeros(2 * len(rows)), -np.array(distances)],
        bounds=(None, None),
    )
    return round(float(least.fun), 4), np.round(least.x[: len(items)], 3).tolist()
