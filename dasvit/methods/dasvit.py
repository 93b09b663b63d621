"""DASViT (the paper, 2025): DARTS in three stages, on selected tokens, with a fairness term."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from dasvit.methods.base import DARTS, Domain, LogUniform, Uniform, register_method
from dasvit.run.settings import Range, require
from dasvit.spaces.base import Route

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float
    from torch import Tensor

    from dasvit.methods.base import Arch
    from dasvit.spaces.cell.candidates import Candidates

__all__ = ["DASViT"]

_FRACTION = "gamma_fraction"
"""The draw that stands for gamma_max: how much of what is left above gamma_min it takes."""
_RULE = "0 <= gamma_min < gamma_max <= 1 must hold"


@register_method
@dataclass(frozen=True, kw_only=True)
class DASViT(DARTS):
    """The paper's method: progressive stages (III-A), partial token selection (III-C), fairness
    regularisation of the operations (III-D). Its gaps and our choices: docs/fidelity.md."""

    name: ClassVar[str] = "dasvit"
    title: ClassVar[str] = "DASViT"
    staged: ClassVar[bool] = True
    tied: ClassVar[tuple[str, ...]] = ("gamma_min", "gamma_max", _FRACTION)

    stage_layers: tuple[Annotated[int, Range("[1, 1000]")], ...] = (2, 4, 6)
    """Encoder layers of the supernet in each stage (III-A)."""
    stage_ops: tuple[Annotated[int, Range("[1, inf)")], ...] = (8, 5, 3)
    """Candidates kept on each edge in each stage (III-A)."""
    stage_epochs: Annotated[int, Range("[1, inf)")] = 30
    """Epochs of each stage (IV-A)."""

    token_ratio: Annotated[float, Range("(0, 1]", "1 selects all tokens")] = 0.5
    """λ: share of the patch tokens kept by token selection (III-C); 1 turns it off."""
    token_where: Literal["input", "edge"] = "input"
    """Select once on the embedded tokens, or on every edge with the others bypassing it."""

    gamma_min: float = 0.2
    """γ_min: lower bound on the total weight of an operation type (Eq. 18)."""
    gamma_max: float = 0.5
    """γ_max: upper bound on the total weight of an operation type (Eq. 18)."""
    zeta1: Annotated[float, Range("[0, inf)")] = 1.0
    """ζ1: penalty coefficient above γ_max (Eq. 18)."""
    zeta2: Annotated[float, Range("[0, inf)")] = 1.0
    """ζ2: penalty coefficient below γ_min (Eq. 18)."""
    skip_weight: Annotated[float, Range("[0, inf)")] = 0.1
    """a: weight of the skip-connection term L1 (Eq. 19); 1 bans skips (docs/methods.md)."""
    type_weight: Annotated[float, Range("[0, inf)")] = 1.0
    """b: weight of the operation-type term L2 (Eq. 19)."""
    type_scope: Literal["mean", "edge"] = "mean"
    """Whether Eq. 17 and 18 bound the mean over the edges, or each edge by itself, since every
    edge decides for itself what is derived."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.gamma_min, self.gamma_max
        require(0 <= low < high <= 1, f"{_RULE}, but got (gamma_min={low}, gamma_max={high})")

    def route(self) -> Route:
        return Route(token_ratio=self.token_ratio, token_where=self.token_where)

    def penalty(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> Float[Tensor, ""]:
        """Eq. 19: `L_fair = a·L1 + b·L2`."""
        skip = self.skip_weight * skip_loss(weights, candidates)
        totals = type_totals(weights, candidates, self.type_scope)
        if not totals:  # zero and identity alone
            return skip
        return skip + self.type_weight * self._type_loss(totals)

    def _type_loss(self, totals: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Eq. 18: `Σ ζ1·max(0, T − γ_max) + ζ2·max(0, γ_min − T)` over the types; of totals per
        edge, its mean over the edges."""
        first, *rest = (
            self.zeta1 * (total - self.gamma_max).clamp(min=0)
            + self.zeta2 * (self.gamma_min - total).clamp(min=0)
            for total in totals.values()
        )
        return sum(rest, start=first).mean()

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        totals = type_totals(weights, candidates, "mean")
        return {f"type/{kind}": total.item() for kind, total in totals.items()}

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        """γ_min < γ_max holds by construction, with bounds that do not move: γ_min is drawn, and a
        fraction of what is left above it. (Bounds that depend on another draw would take γ_max out
        of the sampler's joint model.)"""
        # A fixed gamma_max bounds gamma_min from above.
        top = self.gamma_max if "gamma_max" in fixed else 0.5
        space: dict[str, Domain] = {
            # Below a quarter, little of a small image is left.
            "token_ratio": Uniform(0.25, 1.0),
            # At uniform weights over the eight candidates MSA and MLP hold 3/8 each, so that both
            # penalties can act.
            "gamma_min": Uniform(0.0, 0.9 * top),
            # gamma_max keeps a distance from gamma_min and stays below 1.
            _FRACTION: Uniform(0.1, 0.9),
            # Over two decades around 1.
            "zeta1": LogUniform(0.1, 10.0),
            "zeta2": LogUniform(0.1, 10.0),
            # From no effect to no skips; they break even at 0.1 to 0.2.
            "skip_weight": LogUniform(0.003, 1.0),
            "type_weight": LogUniform(0.01, 10.0),
            **super().outer_space(weight_lr=weight_lr),
        }
        out = {_FRACTION} if "gamma_max" in fixed else set()
        if "type_weight" in fixed and self.type_weight == 0:  # the bounds have no effect then
            out = {"gamma_min", _FRACTION, "zeta1", "zeta2"}
        return {name: domain for name, domain in space.items() if name not in out}

    @property
    def outer(self) -> tuple[str, ...]:
        drawn = self.outer_space(weight_lr=1.0)
        return tuple("gamma_max" if name == _FRACTION else name for name in drawn)

    def drawn(self, draw: Mapping[str, Any]) -> Self:
        values = dict(draw)
        if _FRACTION in values:
            require("gamma_max" not in values, f"give gamma_max or {_FRACTION}, not both")
            fraction, low = values.pop(_FRACTION), values.get("gamma_min", self.gamma_min)
            require(0 < fraction <= 1, f"{_FRACTION} must lie in (0, 1], but got {fraction:g}")
            values["gamma_max"] = low + fraction * (1.0 - low)
        return dataclasses.replace(self, **values)

    def as_draw(self) -> dict[str, Any]:
        share = (self.gamma_max - self.gamma_min) / (1.0 - self.gamma_min)
        return self.outer_settings() | {_FRACTION: share}

    def heaviest(self, *, weight_lr: float, fixed: Collection[str] = ()) -> Self:
        heavy = super().heaviest(weight_lr=weight_lr, fixed=fixed)
        return heavy if "token_ratio" in fixed else dataclasses.replace(heavy, token_ratio=1.0)

    def lighter(self) -> tuple[Self, ...]:
        ratios = dict.fromkeys((self.token_ratio, 1.0, 0.5, 0.25))
        return tuple(dataclasses.replace(self, token_ratio=ratio) for ratio in ratios)

    def make_room(self, given: Mapping[str, float]) -> Self:
        """Where one γ is given and a sweep draws the other: the other moves so that their distance
        keeps its share, γ_min of γ_max, or γ_max of what is above γ_min."""
        low, high = given.get("gamma_min"), given.get("gamma_max")
        if high is not None and low is None and high <= self.gamma_min:
            require(high > 0, f"--gamma-max {high:g} leaves --gamma-min no room: {_RULE}")
            return dataclasses.replace(self, gamma_min=high * self.gamma_min / self.gamma_max)
        if low is not None and high is None and low >= self.gamma_max:
            require(low < 1, f"--gamma-min {low:g} leaves --gamma-max no room: {_RULE}")
            share = self.as_draw()[_FRACTION]
            return dataclasses.replace(self, gamma_max=low + share * (1.0 - low))
        return self


def skip_loss(weights: Float[Tensor, "edges ops"], candidates: Candidates) -> Float[Tensor, ""]:
    """Eq. 16, L1: mean weight of `identity` over the edges that still hold it (0 if none does)."""
    mask = candidates.mask("identity", weights)
    return (weights * mask).sum() / mask.sum().clamp(min=1)


def type_totals(
    weights: Float[Tensor, "edges ops"], candidates: Candidates, scope: Literal["mean", "edge"]
) -> dict[str, Float[Tensor, "*edges"]]:
    """Eq. 17: the total weight of each operation type, on each edge or in the mean over all."""
    by_edge = {
        kind: (weights * candidates.mask(kind, weights)).sum(dim=1) for kind in candidates.types
    }
    return by_edge if scope == "edge" else {kind: t.mean() for kind, t in by_edge.items()}
