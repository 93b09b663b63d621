"""From scores of the candidates to what a stage keeps, and to the genotype. Pure."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.genotype import Edge, Genotype, edge_list
from dasvit.spaces.cell.operations import ZERO

__all__ = ["derive", "prune"]


def prune(
    scores: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    num_ops: int,
    *,
    zero: str = "ranked",
) -> tuple[EdgeOps, Int[Tensor, "edges kept"]]:
    """The `num_ops` candidates of highest score on each edge (Algorithm 1, lines 17-18).

    Every edge decides for itself, as in P-DARTS. Ties keep the earlier candidate, and the survivors
    keep their order.

    Args:
        scores: (edges, ops), larger is better.
        edge_ops: the candidates of each row.
        num_ops: how many an edge keeps.
        zero: "ranked" (like the others) or "first" (dropped before any other).

    Returns:
        The surviving names, and their columns (edges, num_ops).

    Raises:
        ValueError: more asked for than there are, scores that are not finite, or another `zero`.
    """
    if zero not in ("ranked", "first"):
        raise ValueError(f"zero must be ranked or first, but got {zero!r}")
    if not scores.isfinite().all():
        raise ValueError(f"scores must be finite to prune by, but got {scores.tolist()}")
    if num_ops > scores.shape[1]:
        raise ValueError(f"cannot keep {num_ops} of {scores.shape[1]} candidates")
    columns = []
    for row, names in zip(scores.tolist(), edge_ops, strict=True):
        last = [zero == "first" and name == ZERO for name in names]
        ranked = sorted(range(len(names)), key=lambda i: (last[i], -row[i], i))
        columns.append(sorted(ranked[:num_ops]))
    kept = tuple(
        tuple(names[i] for i in index) for names, index in zip(edge_ops, columns, strict=True)
    )
    return kept, torch.tensor(columns, device=scores.device)


def derive(
    scores: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    *,
    num_nodes: int,
    edges_per_node: int = 2,
    provenance: dict[str, Any] | None = None,
) -> Genotype:
    """The strongest incoming edges of every node, each with its strongest operation (Algorithm 1,
    line 21; the rule of DARTS).

    The strength of an edge and its operation leave `zero` out. Ties go to the earlier edge and the
    earlier candidate.

    Args:
        scores: (edges, ops), rows in the order of `edge_list`; comparable between rows.
        edge_ops: the candidates of each row.
        num_nodes: intermediate nodes.
        edges_per_node: incoming edges kept (DARTS: 2).
        provenance: stored in the genotype.

    Raises:
        ValueError: an edge that holds nothing but `zero`, or scores that are not finite.
    """
    if not scores.isfinite().all():
        raise ValueError(f"scores must be finite to derive from, but got {scores.tolist()}")
    incoming: dict[int, list[tuple[float, Edge]]] = {j: [] for j in range(num_nodes)}
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
    nodes = []
    for node in range(num_nodes):
        strongest = sorted(incoming[node], key=lambda item: (-item[0], item[1].source))
        nodes.append(tuple(sorted(edge for _, edge in strongest[:edges_per_node])))
    return Genotype(tuple(nodes), provenance or {})
