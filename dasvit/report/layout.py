"""Where the parts of an encoder's drawing go. Values only.

Columns from left to right: inputs, the boxes of the first nodes, those nodes, the boxes of the next
nodes, and so on, then the sum and the output. A node's column is its longest path from the inputs.
A value that is read further right runs through the columns between as a "lane" with a place of its
own, so no line touches a box; lines bend in the gaps between columns only.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

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

Link = tuple[int, int]  # from one item to another, in the next column


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
    _heights(items, links)
    x = 0.0
    for c in range(1 + max(item.column for item in items)):
        column = [item for item in items if item.column == c]
        width = max(item.width for item in column)
        rises = [abs(items[u].y - items[v].y) for u, v in links if items[v].column == c]
        x += min(0.38 + 0.3 * max(rises), 1.3) if c else 0.0  # steep lines need a wider gap
        for item in column:
            item.x = x + width / 2
            item.width = width if item.kind == "lane" else item.width
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


def _heights(items: Sequence[Item], links: Collection[Link]) -> None:
    """Each item as near as its column lets it to the middle of what enters it, and the other way
    round, so that few lines cross."""
    beside: list[tuple[list[Item], list[Item]]] = [([], []) for _ in items]
    for u, v in links:
        beside[v][0].append(items[u])
        beside[u][1].append(items[v])
    last = max(item.column for item in items)
    for side, columns in ((0, range(last + 1)), (1, range(last, -1, -1)), (0, range(last + 1))):
        for c in columns:
            column = [
                (_middle(near[side]) if near[side] else item.y, item)
                for item, near in zip(items, beside, strict=True)
                if item.column == c
            ]
            column.sort(key=lambda pair: (-pair[0], -pair[1].y))
            top = math.inf
            for wanted, item in column:
                item.y = min(wanted, top - SIZES[item.kind][1])
                top = item.bottom - PADDING
            lower = sum(wanted - item.y for wanted, item in column) / len(column)
            for _, item in column:
                item.y += lower


def _middle(items: Sequence[Item]) -> float:
    return sum(item.y for item in items) / len(items)
