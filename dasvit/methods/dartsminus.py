"""DARTS− (Chu et al., 2021, arXiv:2009.01027): an auxiliary skip that fades."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from dasvit.methods.base import DARTS, Uniform, register_method
from dasvit.run.settings import Range, require

if TYPE_CHECKING:
    from collections.abc import Collection

    from jaxtyping import Float
    from torch import Tensor

    from dasvit.methods.base import Arch, Domain
    from dasvit.spaces.cell.candidates import Candidates

__all__ = ["DARTSMinus"]


@register_method
@dataclass(frozen=True, kw_only=True)
class DARTSMinus(DARTS):
    """`x·β(t)` is added to every edge, with β from `skip_start` to 0 over the search. The skip that
    helps to train a deep supernet is apart from the candidate `identity`, whose alpha then says
    only what it is worth.

    The auxiliary skip is computed as more weight of `identity`, which every edge must hold.
    """

    name: ClassVar[str] = "dartsminus"
    title: ClassVar[str] = "DARTS−"

    skip_start: Annotated[float, Range("[0, inf)")] = 1.0
    """β at the start of the search."""
    skip_decay: Literal["linear", "cosine"] = "linear"
    """How β falls to 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len({*self.stage_ops}) <= 1,
            f"method {self.name} must keep all candidates, but got stage_ops={self.stage_ops}: its "
            "auxiliary skip is more weight of identity, on every edge",
        )

    def check_operations(self, operations: Collection[str]) -> None:
        require(
            "identity" in operations,
            f"method {self.name} needs identity among the operations, but got "
            f"{', '.join(operations)}: its auxiliary skip is more weight of it",
        )

    def extra_skip(self, t: Tensor) -> Float[Tensor, ""]:
        left = 1 - t if self.skip_decay == "linear" else 0.5 * (1 + (math.pi * t).cos())
        return self.skip_start * left

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        return {"skip/auxiliary": self.extra_skip(t).item()}

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"skip_start": Uniform(0.1, 1.0), **super().outer_space(weight_lr=weight_lr)}
