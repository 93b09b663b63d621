"""From scores of the candidates to the genotype. Pure."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dasvit.spaces.cell.genotype import Edge, Genotype, edge_list
from dasvit.spaces.cell.operations import IDENTITY, ZERO, is_blind, mixes_tokens

__all__ = ["derive"]


def derive(
    scores: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    *,
    num_nodes: int,
    edges_per_node: int = 2,
    least_score: float = -math.inf,
    most_skips: int | None = None,
    provenance: dict[str, Any] | None = None,
) -> Genotype:
    """The strongest incoming edges of every node, each with its strongest operation (Algorithm 1,
    line 21; the rule of DARTS).

    The strength of an edge and its operation leave `zero` out. Ties go to the earlier edge and the
    earlier candidate. If none of the operations mixes tokens, so that the encoder would not see the
    image, one edge changes: of all encoders that see it, this has the largest sum of scores.

    Args:
        scores: (edges, ops), rows in the order of `edge_list`; comparable between rows.
        edge_ops: the candidates of each row.
        num_nodes: intermediate nodes.
        edges_per_node: incoming edges kept (DARTS: 2).
        least_score: an edge whose strongest operation scores less is kept only as a node's first.
        most_skips: edges that may hold `identity`: while there are more, the weakest one comes last
            on its edge, and the encoder is derived anew (P-DARTS).
        provenance: stored in the genotype.

    Raises:
        ValueError: an edge that holds nothing but `zero`, or scores that are not finite.
    """
    if not scores.isfinite().all():
        raise ValueError(f"scores must be finite to derive from, but got {scores.tolist()}")
    scores, last, places = scores.clone(), scores.min() - 1, edge_list(num_nodes)
    while True:
        nodes = _derive(scores, edge_ops, num_nodes, edges_per_node, least_score)
        rows = [
            places.index((edge.source, node))
            for node, edges in enumerate(nodes)
            for edge in edges
            if edge.operation == IDENTITY
        ]
        held = [(e, edge_ops[e].index(IDENTITY)) for e in rows]
        skips = [(scores[e, i].item(), e, i) for e, i in held if scores[e, i] > last]
        if most_skips is None or len(held) <= most_skips or not skips:
            return Genotype(nodes, provenance or {})
        _, e, i = min(skips)
        scores[e, i] = last


def _derive(
    scores: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    num_nodes: int,
    edges_per_node: int,
    least_score: float,
) -> tuple[tuple[Edge, ...], ...]:
    """The edges of every node, as `derive` says."""
    incoming: list[list[tuple[float, Edge]]] = [[] for _ in range(num_nodes)]
    mixing: list[list[tuple[float, Edge]]] = [[] for _ in range(num_nodes)]
    for (source, node), names, row in zip(
        edge_list(num_nodes), edge_ops, scores.tolist(), strict=True
    ):
        candidates = [
            (score, -i, name)
            for i, (name, score) in enumerate(zip(names, row, strict=True))
            if name != ZERO
        ]
        if not candidates:
            raise ValueError(
                f"the edge from source {source} to node o_{node} holds nothing but zero"
            )
        strength, _, name = max(candidates)
        incoming[node].append((strength, Edge(source, name)))
        mixes = [candidate for candidate in candidates if mixes_tokens(candidate[-1])]
        if mixes:
            strength, _, name = max(mixes)
            mixing[node].append((strength, Edge(source, name)))
    kept = []
    for edges in incoming:
        first, *others = sorted(edges, key=lambda item: (-item[0], item[1].source))
        others = [item for item in others[: edges_per_node - 1] if item[0] >= least_score]
        kept.append([first, *others])
    if is_blind(edge.operation for edges in kept for _, edge in edges):
        _open_its_eyes(kept, mixing)
    return tuple(tuple(sorted(edge for _, edge in edges)) for edges in kept)


def _open_its_eyes(
    kept: list[list[tuple[float, Edge]]], mixing: list[list[tuple[float, Edge]]]
) -> None:
    """Put the edge that mixes tokens and costs the least into the place of one that is kept: of the
    one from its own source, or else of the weakest one of its node."""
    swaps = []
    for node, edges in enumerate(mixing):
        sources = [edge.source for _, edge in kept[node]]
        for strength, edge in edges:
            place = sources.index(edge.source) if edge.source in sources else len(sources) - 1
            swaps.append((kept[node][place][0] - strength, node, edge.source, place, edge))
    if swaps:
        cost, node, _, place, edge = min(swaps)
        kept[node][place] = kept[node][place][0] - cost, edge
