"""From scores of the candidates to the genotype. Pure."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dasvit.spaces.cell.genotype import Edge, Genotype, edge_list
from dasvit.spaces.cell.operations import ZERO

__all__ = ["derive"]


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
