"""From scores of the candidates to those that the next stage keeps. Pure."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.operations import ZERO, is_blind, mixes_tokens

__all__ = ["prune"]


def prune(
    scores: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    num_ops: int,
    *,
    zero: str = "ranked",
) -> tuple[EdgeOps, Int[Tensor, "edges kept"]]:
    """The `num_ops` candidates of highest score on each edge (Algorithm 1, lines 17-18).

    Every edge decides for itself, as in P-DARTS. Ties keep the earlier candidate, and the survivors
    keep their order. If no survivor would mix tokens, the best candidate that does stays, where
    that costs the least score.

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
        columns.append(ranked[:num_ops])
    if all(is_blind(names[i] for i in c) for names, c in zip(edge_ops, columns, strict=True)):
        _keep_one_that_mixes(scores, edge_ops, columns)
    columns = [sorted(column) for column in columns]
    kept = tuple(
        tuple(names[i] for i in index) for names, index in zip(edge_ops, columns, strict=True)
    )
    return kept, torch.tensor(columns, device=scores.device)


def _keep_one_that_mixes(
    scores: Tensor, edge_ops: Sequence[tuple[str, ...]], columns: list[list[int]]
) -> None:
    """Put one candidate that mixes tokens in the place of the last survivor of its edge."""
    swaps = [
        (row[columns[edge][-1]] - row[i], edge, i)
        for edge, (row, names) in enumerate(zip(scores.tolist(), edge_ops, strict=True))
        for i, name in enumerate(names)
        if mixes_tokens(name)
    ]
    if swaps:
        _, edge, i = min(swaps)
        columns[edge][-1] = i
