"""Operation fairness regularisation (Section III-D, Eq. 16-19). Depends on alpha only."""

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dasvit.spaces.cell.operations import IDENTITY, ZERO, operation_kind

__all__ = [
    "fairness_loss",
    "fairness_types",
    "forget_fake_masks",
    "skip_loss",
    "type_loss",
    "type_totals",
]


def fairness_types(operations: Sequence[str]) -> tuple[str, ...]:
    """The operation types T of Eq. 17 in a list of operations: all but zero and identity."""
    kinds = dict.fromkeys(operation_kind(name) for name in operations)
    return tuple(kind for kind in kinds if kind not in (ZERO, IDENTITY))


def _mask(edge_ops: Sequence[tuple[str, ...]], kind: str, like: Tensor) -> Tensor:
    kept = _fake_mask if isinstance(like, FakeTensor) else _real_mask
    return kept(tuple(edge_ops), kind, like.dtype, like.device)


def _make_mask(
    edge_ops: tuple[tuple[str, ...], ...], kind: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    rows = [[operation_kind(name) == kind for name in names] for names in edge_ops]
    with torch.inference_mode(False):  # whatever mode the first call runs in
        return torch.tensor(rows, dtype=dtype, device=device)


# Kept: on a GPU each would be a copy from the host in every step. For good: a CUDA graph goes on
# reading them from where they lie.
_real_mask = cache(_make_mask)
_fake_mask = cache(_make_mask)


def forget_fake_masks() -> None:
    """Fake tensors must not outlive their mode, nor meet another's."""
    _fake_mask.cache_clear()


def skip_loss(
    weights: Float[Tensor, "edges ops"], edge_ops: Sequence[tuple[str, ...]]
) -> Float[Tensor, ""]:
    """Eq. 16: mean weight of `identity` over the edges that still hold it (0 if none does)."""
    mask = _mask(edge_ops, IDENTITY, weights)
    return (weights * mask).sum() / mask.sum().clamp(min=1)


def type_totals(
    weights: Float[Tensor, "edges ops"], edge_ops: Sequence[tuple[str, ...]], types: Sequence[str]
) -> dict[str, Float[Tensor, ""]]:
    """Eq. 17: each type's total weight, averaged over all edges."""
    return {
        kind: (weights * _mask(edge_ops, kind, weights)).sum() / len(edge_ops) for kind in types
    }


def type_loss(
    totals: dict[str, Float[Tensor, ""]],
    *,
    gamma_min: float,
    gamma_max: float,
    zeta1: float,
    zeta2: float,
) -> Float[Tensor, ""]:
    """Eq. 18: `Σ ζ1·max(0, T − γ_max) + ζ2·max(0, γ_min − T)` over the types, one at least."""
    terms = [
        zeta1 * (total - gamma_max).clamp(min=0) + zeta2 * (gamma_min - total).clamp(min=0)
        for total in totals.values()
    ]
    return torch.stack(terms).sum()


def fairness_loss(
    weights: Float[Tensor, "edges ops"],
    edge_ops: Sequence[tuple[str, ...]],
    types: Sequence[str],
    *,
    skip_weight: float,
    type_weight: float,
    gamma_min: float,
    gamma_max: float,
    zeta1: float,
    zeta2: float,
) -> Float[Tensor, ""]:
    """Eq. 19: `a·L1 + b·L2` on the operation weights softmax(alpha).

    Args:
        weights: softmax(alpha), (edges, ops).
        edge_ops: the candidates of each edge.
        types: the types of Eq. 17, from the whole space, so that a type pruned from every edge
            counts as 0 rather than vanishing.
    """
    totals = type_totals(weights, edge_ops, types)
    if not totals:  # zero and identity alone
        return skip_weight * skip_loss(weights, edge_ops)
    bounds = type_loss(totals, gamma_min=gamma_min, gamma_max=gamma_max, zeta1=zeta1, zeta2=zeta2)
    return skip_weight * skip_loss(weights, edge_ops) + type_weight * bounds
