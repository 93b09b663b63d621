"""β-DARTS (Ye et al., 2022, arXiv:2203.01665): DARTS with a decay of alpha that grows."""

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

__all__ = ["BetaDARTS"]


@register_method
@dataclass(frozen=True, kw_only=True)
class BetaDARTS(DARTS):
    """`L_val + w·t·mean over edges of log Σ exp(alpha)`: keeps alphas small and near each other, so
    that the supernet depends less on them.

    The mean runs over the edges, as in the authors' code; that code leaves the term out in second
    order, this does not.
    """

    name: ClassVar[str] = "betadarts"
    title: ClassVar[str] = "β-DARTS"

    beta_weight: Annotated[float, Range("[0, inf)")] = 50.0
    """w: weight of the decay at the end of the search; it grows linearly from 0."""

    def penalty(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> Float[Tensor, ""]:
        return t * self.beta_weight * arch["alpha"].logsumexp(dim=-1).mean()

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        # From next to nothing to twice the authors' value.
        return {"beta_weight": LogUniform(0.5, 100.0), **super().outer_space(weight_lr=weight_lr)}
