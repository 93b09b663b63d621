"""SmoothDARTS (Chen and Hsieh, 2020, arXiv:2002.05283), by random smoothing (SDARTS-RS)."""

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

__all__ = ["SDARTS"]

_START = 0.03
"""ε at the start of the search."""


@register_method
@dataclass(frozen=True, kw_only=True)
class SDARTS(DARTS):
    """The supernet's weights are trained under softmax(alpha) + U(−ε, ε), cut to [0, 1] and divided
    by its sum; ε grows linearly from 0.03 over the search, where it ends above. So the loss is
    smooth around alpha.

    The paper writes the noise on alpha; its authors' code adds it to the softmax, and so does this.
    In second order the look-ahead step is taken under the same noise. An edge whose weights are all
    cut to 0 keeps its softmax; there the authors take the strongest candidate alone.
    """

    name: ClassVar[str] = "sdarts"
    title: ClassVar[str] = "SDARTS-RS"

    epsilon: Annotated[float, Range("[0, inf)")] = 0.3
    """ε at the end of the search: the most that a weight is moved."""

    def noise(self, arch: Arch, candidates: Candidates, t: Tensor) -> dict[str, Tensor]:
        first = min(_START, self.epsilon)
        size = first + (self.epsilon - first) * t
        return {"shift": size * (2 * arch["alpha"].new_empty(arch["alpha"].shape).uniform_() - 1)}

    def train_weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        weights = arch["alpha"].softmax(dim=-1)
        moved = (weights + noise["shift"]).clamp(0, 1)
        total = moved.sum(dim=-1, keepdim=True)
        # Where the noise took everything away, the weights stay as they are.
        return (moved / total.clamp(min=1e-12)).where(total > 0, weights)

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"epsilon": LogUniform(0.03, 1.0), **super().outer_space(weight_lr=weight_lr)}
