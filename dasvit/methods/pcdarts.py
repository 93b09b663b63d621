"""PC-DARTS (Xu et al., 2020, arXiv:1907.05737): a part of the channels, and weights of edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dasvit.methods.base import DARTS, Choice, register_method
from dasvit.run.settings import Range
from dasvit.spaces.base import Route

if TYPE_CHECKING:
    from collections.abc import Collection

    from jaxtyping import Float
    from torch import Tensor

    from dasvit.methods.base import Arch, Domain
    from dasvit.spaces.cell.candidates import Candidates

__all__ = ["PCDARTS"]


@register_method
@dataclass(frozen=True, kw_only=True)
class PCDARTS(DARTS):
    """One of K parts of each token's channels goes through the candidates of an edge, the others
    bypass them, and the channels are shuffled behind. softmax(beta) weighs the n edges into a node:
    a candidate has the weight `softmax(alpha) · n · softmax(beta)`, and what bypasses the edge's
    sum of these. All architecture parameters stay still at first.

    Departures: the authors have no factor n; with it, uniform beta and K = 1 are plain DARTS. They
    count epochs (15 of 50) where the start is a share of the search here. The encoder of a supernet
    with K > 1 is scored at the end as the supernet under one-hot weights.
    """

    name: ClassVar[str] = "pcdarts"
    title: ClassVar[str] = "PC-DARTS"

    alpha_lr: Annotated[float, Range("(0, inf)")] = 6e-4
    """Learning rate of alphas and betas, Adam."""
    channel_parts: Annotated[int, Range("[1, inf)")] = 4
    """K; it divides the width, and heads must divide the K-th part of it."""
    still_share: Annotated[float, Range("[0, 1)")] = 0.3
    """Share of the search in which the architecture parameters stay still."""

    def frozen(self, epoch_in_stage: int) -> bool:
        return epoch_in_stage < int(self.still_share * self.stage_epochs) or super().frozen(
            epoch_in_stage
        )

    def route(self) -> Route:
        return Route(channel_parts=self.channel_parts)

    def parameters(self, candidates: Candidates) -> dict[str, Tensor]:
        import torch

        alpha = super().parameters(candidates)
        return alpha | {"beta": self.alpha_init_std * torch.randn(len(candidates.edge_ops), 1)}

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        return arch["alpha"].softmax(dim=-1) * _edge_weights(arch["beta"])

    def scores(self, arch: Arch) -> Float[Tensor, "edges ops"]:
        arch = {name: value.detach().double() for name, value in arch.items()}
        return self.weights(arch, {}, arch["alpha"])

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        edges = _edge_weights(arch["beta"].detach())
        return {"beta/strongest": edges.max().item(), "beta/weakest": edges.min().item()}

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {
            "still_share": Choice((0.0, 0.15, 0.3, 0.45)),
            **super().outer_space(weight_lr=weight_lr),
        }


def _edge_weights(beta: Float[Tensor, "edges 1"]) -> Float[Tensor, "edges 1"]:
    """`n · softmax(beta)` over the n edges into each node: 2 of the first node, 3 of the second, …;
    1 where beta is uniform."""
    import torch

    nodes, start = [], 0
    while start < len(beta):
        n = len(nodes) + 2
        nodes.append(n * beta[start : start + n].softmax(dim=0))
        start += n
    return torch.cat(nodes)
