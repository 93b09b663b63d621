"""DARTS+ (Liang et al., 2019, arXiv:1909.06035): DARTS that stops in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from dasvit.methods.base import DARTS, Choice, register_method
from dasvit.run.settings import Range

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from dasvit.methods.base import Domain, Ranking

__all__ = ["DARTSPlus"]


@register_method
@dataclass(frozen=True, kw_only=True)
class DARTSPlus(DARTS):
    """The search ends as soon as the derived encoder holds `stop_skips` skips, or the order of the
    operations with parameters has stayed the same on every edge for `stop_epochs` epochs.

    The paper counts the skips of a normal cell with eight edges; the encoder here has four. Epochs
    in which alpha stays still do not count. While alpha is near uniform two skips may be chance:
    `alpha_freeze_epochs` gives the weights time first.
    """

    name: ClassVar[str] = "dartsplus"
    title: ClassVar[str] = "DARTS+"

    stop_skips: Annotated[int, Range("[1, inf)")] = 2
    """Skips in the derived encoder that end the search."""
    stop_epochs: Annotated[int, Range("[1, inf)")] = 10
    """Epochs without a change of order that end the search."""

    def stop(self, history: Sequence[Ranking]) -> str | None:
        if history and history[-1].skips >= self.stop_skips:
            return f"with {history[-1].skips} skips in the encoder"
        # N epochs without a change are N + 1 equal orders.
        last = [ranking.order for ranking in history[-self.stop_epochs - 1 :]]
        if len(last) > self.stop_epochs and len(set(last)) == 1:
            return f"after {self.stop_epochs} epochs without a change of order"
        return None

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"stop_skips": Choice((1, 2, 3)), **super().outer_space(weight_lr=weight_lr)}
