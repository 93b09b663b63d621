"""Derivation and pruning by trying everything: slow and literal, for the tests alone."""

import itertools
import math
from collections.abc import Sequence

from support.reference import edges_of
from torch import Tensor

from dasvit.spaces.cell.genotype import Edge, Genotype


def derive(
    scores: Tensor, edge_ops: Sequence[Sequence[str]], num_nodes: int, edges_per_node: int
) -> Genotype:
    """Of all encoders with `edges_per_node` edges per node, the one of largest total score (the
    earliest if tied)."""
    edges = edges_of(num_nodes)
    nodes = []
    for node in range(num_nodes):
        into = [m for m, (_, j) in enumerate(edges) if j == node]
        best, chosen = -math.inf, None
        for subset in itertools.combinations(into, min(edges_per_node, len(into))):
            for picks in itertools.product(*(range(len(edge_ops[m])) for m in subset)):
                names = [edge_ops[m][o] for m, o in zip(subset, picks, strict=True)]
                total = sum(float(scores[m, o]) for m, o in zip(subset, picks, strict=True))
                if "zero" not in names and total > best:
                    best = total
                    chosen = [Edge(edges[m][0], n) for m, n in zip(subset, names, strict=True)]
        assert chosen is not None
        nodes.append(tuple(chosen))
    return Genotype(tuple(nodes))


def prune(row: Sequence[float], names: Sequence[str], num_ops: int, zero: str) -> list[int]:
    """Of all ways to keep `num_ops` candidates, that of largest total (the earliest if tied)."""
    best, chosen = -math.inf, None
    for kept in itertools.combinations(range(len(names)), num_ops):
        if zero == "first" and num_ops < len(names) and "zero" in [names[i] for i in kept]:
            continue
        total = sum(row[i] for i in kept)
        if total > best:
            best, chosen = total, list(kept)
    assert chosen is not None
    return chosen
