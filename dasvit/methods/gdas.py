"""GDAS (Dong and Yang, 2019, arXiv:1910.04465): one sampled operation per edge and step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dasvit.methods.base import DARTS, LogUniform, register_method
from dasvit.run.settings import Range
from dasvit.spaces.base import Route

if TYPE_CHECKING:
    from collections.abc import Collection

    from jaxtyping import Float
    from torch import Tensor

    from dasvit.methods.base import Arch, Domain
    from dasvit.spaces.cell.candidates import Candidates

__all__ = ["GDAS"]


@register_method
@dataclass(frozen=True, kw_only=True)
class GDAS(DARTS):
    """A step draws one operation per edge by softmax(alpha), which gets the weight 1 and alone is
    computed. Its weight's gradient goes on to alpha through the Gumbel softmax, `softmax((log
    softmax(alpha) + g)/τ)` with Gumbel noise g; the temperature τ falls linearly over the search.

    The supernet is evaluated with the strongest operation of each edge. Departures: both passes of
    a step see the same draw; the authors draw for each. Their code also adds the weights of the
    operations that were not drawn, all 0, to the features, from which these get the sum of the
    features' gradient; here they get none of their own.
    """

    name: ClassVar[str] = "gdas"
    title: ClassVar[str] = "GDAS"

    tau_start: Annotated[float, Range("(0, inf)")] = 10.0
    """τ at the start of the search."""
    tau_end: Annotated[float, Range("(0, inf)")] = 0.1
    """τ at its end."""

    def route(self) -> Route:
        return Route(sparse=True)

    def noise(self, arch: Arch, candidates: Candidates, t: Tensor) -> dict[str, Tensor]:
        drawn = arch["alpha"].new_empty(arch["alpha"].shape).exponential_()
        return {"gumbel": -drawn.clamp(min=1e-30).log()}  # finite

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        logs = arch["alpha"].log_softmax(dim=-1)
        if not noise:
            return _one_hot(logs)
        soft = ((logs + noise["gumbel"]) / self._tau(t)).softmax(dim=-1)
        return _one_hot(soft.detach()) * (1 + soft - soft.detach())

    def _tau(self, t: Tensor) -> Tensor:
        return self.tau_start + (self.tau_end - self.tau_start) * t

    def shares(self, arch: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        """With which probability a step draws each candidate."""
        return arch["alpha"].softmax(dim=-1)

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        return {"gumbel/temperature": self._tau(t).item()}

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"tau_end": LogUniform(0.05, 5.0), **super().outer_space(weight_lr=weight_lr)}


def _one_hot(values: Float[Tensor, "edges ops"]) -> Float[Tensor, "edges ops"]:
    """1 at the largest value of each row; the first one where several are."""
    return values.new_zeros(values.shape).scatter(1, values.argmax(dim=1, keepdim=True), 1.0)
