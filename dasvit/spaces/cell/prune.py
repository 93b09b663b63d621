"""Progressive schedule (Algorithm 1, lines 3-20): which candidates each edge keeps. Pure."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dasvit.spaces.cell.genotype import edge_list
from dasvit.spaces.cell.operations import ZERO

__all__ = ["first_stage_ops", "prune"]


def first_stage_ops(operations: Sequence[str], num_nodes: int) -> tuple[tuple[str, ...], ...]:
    """Every operation on every edge."""
    return tuple(tuple(operations) for _ in edge_list(num_nodes))


def prune(
    alpha: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    num_ops: int,
    *,
    zero: str = "ranked",
) -> tuple[tuple[tuple[str, ...], ...], Float[Tensor, "edges kept"]]:
    """The `num_ops` candidates of highest weight on each edge (per edge, as P-DARTS).

    Ties keep the earlier candidate. The survivors keep their order.

    Args:
        alpha: (edges, ops).
        edge_ops: the candidates of each row.
        num_ops: how many an edge keeps.
        zero: "ranked" (like the others) or "first" (dropped before any other).

    Returns:
        The surviving names, and their alphas (edges, num_ops), values unchanged.

    Raises:
        ValueError: more asked for than there are, alphas that are not finite, or another `zero`.
    """
    if zero not in ("ranked", "first"):
        raise ValueError(f"zero must be ranked or first, but got {zero!r}")
    if not alpha.isfinite().all():
        raise ValueError(f"alpha must be finite to prune by, but got {alpha.tolist()}")
    alpha = alpha.detach()
    if num_ops > alpha.shape[1]:
        raise ValueError(f"cannot keep {num_ops} of {alpha.shape[1]} candidates")
    names_kept, alpha_kept = [], []
    for row, names in zip(alpha, edge_ops, strict=True):
        values = row.tolist()

        def rank(i: int, names: tuple[str, ...] = names, values: list[float] = values) -> tuple:
            return (zero == "first" and names[i] == ZERO, -values[i], i)

        index = sorted(sorted(range(len(names)), key=rank)[:num_ops])
        names_kept.append(tuple(names[i] for i in index))
        alpha_kept.append(row[torch.tensor(index, device=row.device)])
    return tuple(names_kept), torch.stack(alpha_kept)
