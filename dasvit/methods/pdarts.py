"""P-DARTS (Chen et al., 2019, arXiv:1904.12760): deeper from stage to stage, with few skips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from dasvit.methods.base import DARTS, Choice, register_method
from dasvit.run.settings import Range, require

if TYPE_CHECKING:
    from collections.abc import Collection

    from dasvit.methods.base import Domain

__all__ = ["PDARTS"]

_DECAY = 0.2 * 25
"""The authors' rate of decay per epoch, 0.2, in stages of 25 epochs: by share of a stage."""


@register_method
@dataclass(frozen=True, kw_only=True)
class PDARTS(DARTS):
    """Stages as DASViT's, each with fresh weights and fresh alphas, which stay still in the first
    part of it. `identity` has dropout, whose rate begins anew in each stage, falls linearly while
    the alphas are still, and exponentially after. At most `skips` edges of the encoder hold one:
    the weakest go, one by one.

    Departures: lengths are shares of a stage, where the authors count epochs (10 of 25); alpha's
    gradient is not clipped.
    """

    name: ClassVar[str] = "pdarts"
    title: ClassVar[str] = "P-DARTS"
    staged: ClassVar[bool] = True
    lr_by_stage: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("inherit_weights", "inherit_alpha")

    stage_layers: tuple[Annotated[int, Range("[1, 1000]")], ...] = (2, 4, 6)
    """Encoder layers of the supernet in each stage."""
    stage_ops: tuple[Annotated[int, Range("[1, inf)")], ...] = (8, 5, 3)
    """Candidates kept on each edge in each stage."""
    stage_epochs: Annotated[int, Range("[1, inf)")] = 25
    """Epochs of each stage."""
    alpha_lr: Annotated[float, Range("(0, inf)")] = 6e-4
    """Learning rate of the alphas, Adam."""
    inherit_weights: Literal["cyclic", "stretched", "fresh"] = "fresh"
    """Where the layers of a new stage get their weights; P-DARTS initialises them anew."""
    inherit_alpha: Literal["carry", "reset"] = "reset"
    """Whether the alphas that survive go on in the next stage; in P-DARTS they start anew."""

    still_share: Annotated[float, Range("[0, 1)")] = 0.4
    """Share of each stage in which the alphas stay still."""
    skip_dropout: tuple[Annotated[float, Range("[0, 1)")], ...] = (0.0, 0.4, 0.7)
    """Dropout on `identity` at the start of each stage; the last one holds for further stages."""
    skips: Annotated[int, Range("[0, inf)")] = 2
    """Edges of the encoder that may hold `identity`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.skip_dropout) > 0, "skip_dropout must have a rate")

    @property
    def _still(self) -> int:
        return math.floor(self.still_share * self.stage_epochs)

    def frozen(self, epoch_in_stage: int) -> bool:
        return epoch_in_stage < self._still or super().frozen(epoch_in_stage)

    def skip_drop(self, stage: int, epoch_in_stage: int) -> float:
        first = self.skip_dropout[min(stage, len(self.skip_dropout) - 1)]
        if epoch_in_stage < self._still:
            return first * (self.stage_epochs - epoch_in_stage - 1) / self.stage_epochs
        return first * math.exp(-_DECAY * (epoch_in_stage - self._still) / self.stage_epochs)

    @property
    def most_skips(self) -> int:
        return self.skips

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"skips": Choice((0, 1, 2, 3)), **super().outer_space(weight_lr=weight_lr)}
