"""FairDARTS (Chu et al., 2020, arXiv:1911.12126): candidates that do not compete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dasvit.methods.base import DARTS, LogUniform, register_method
from dasvit.run.settings import Range

if TYPE_CHECKING:
    from collections.abc import Collection

    from jaxtyping import Float
    from torch import Tensor

    from dasvit.methods.base import Arch, Domain
    from dasvit.spaces.cell.candidates import Candidates

__all__ = ["FairDARTS"]


@register_method
@dataclass(frozen=True, kw_only=True)
class FairDARTS(DARTS):
    """Every candidate has the weight sigmoid(alpha), whatever the others have, and a penalty pushes
    each weight towards 0 or 1: `−w·mean of (sigmoid(alpha) − 0.5)²` (its L_0-1).

    A node keeps at most `edges_per_node` edges, and of those only the ones whose strongest weight
    reaches `threshold`. Departure: where none does, the strongest stays, since a node needs an
    edge. Alphas begin near 0, so the threshold is in reach only of a search that moves them by 1.7:
    in `sigmoid/above_threshold` TensorBoard shows the share of candidates that are there.
    """

    name: ClassVar[str] = "fairdarts"
    title: ClassVar[str] = "FairDARTS"

    alpha_lr: Annotated[float, Range("(0, inf)")] = 3e-3
    """Learning rate of the alphas, Adam."""
    alpha_betas: tuple[Annotated[float, Range("[0, 1)")], Annotated[float, Range("[0, 1)")]] = (
        0.9,
        0.999,
    )
    """Adam's betas for the alphas."""
    decision_weight: Annotated[float, Range("[0, inf)")] = 10.0
    """w: weight of the penalty on undecided candidates."""
    threshold: Annotated[float, Range("[0, 1]")] = 0.85
    """Weight that an edge's strongest candidate needs for the edge to stay."""

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        return arch["alpha"].sigmoid()

    def penalty(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> Float[Tensor, ""]:
        return -self.decision_weight * (weights - 0.5).square().mean()

    def scores(self, arch: Arch) -> Float[Tensor, "edges ops"]:
        return arch["alpha"].detach().double().sigmoid()

    @property
    def least_score(self) -> float:
        return self.threshold

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        return {"sigmoid/above_threshold": (weights >= self.threshold).float().mean().item()}

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        drawn = super().outer_space(weight_lr=weight_lr)
        return {"decision_weight": LogUniform(0.1, 100.0), **drawn}
