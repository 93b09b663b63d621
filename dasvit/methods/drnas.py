"""DrNAS (Chen et al., 2021, arXiv:2006.10355): weights drawn from a Dirichlet distribution."""

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

__all__ = ["DrNAS"]


@register_method
@dataclass(frozen=True, kw_only=True)
class DrNAS(DARTS):
    """A step draws the weights of an edge from Dirichlet(elu(alpha) + 1); gradients go through the
    draw (implicit reparameterisation). `kl_weight` times the divergence from Dirichlet(1), summed
    over the edges, is added to the validation loss. The mean of the distribution is what the
    supernet is evaluated with and what is chosen by.

    Departures: no partial channels and no second stage; both passes of a step see the same draw.
    The authors' code chooses by softmax(alpha): on an edge the order is the same, between edges it
    may differ.
    """

    name: ClassVar[str] = "drnas"
    title: ClassVar[str] = "DrNAS"
    own: ClassVar[tuple[str, ...]] = ("alpha_weight_decay",)

    alpha_lr: Annotated[float, Range("(0, inf)")] = 6e-4
    """Learning rate of the alphas, Adam."""
    alpha_weight_decay: Annotated[float, Range("[0, inf)")] = 0.0
    """Weight decay of the alphas; the divergence takes its place."""

    kl_weight: Annotated[float, Range("[0, inf)")] = 1e-3
    """Weight of the divergence from the uniform Dirichlet distribution."""

    def noise(self, arch: Arch, candidates: Candidates, t: Tensor) -> dict[str, Tensor]:
        import torch

        return {"draw": torch._sample_dirichlet(_concentration(arch["alpha"].detach()))}

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Float[Tensor, "edges ops"]:
        concentration = _concentration(arch["alpha"])
        if not noise:
            return concentration / concentration.sum(dim=-1, keepdim=True)
        from dasvit.methods.dirichlet import DrawnFrom

        return DrawnFrom.apply(concentration, noise["draw"])

    def penalty(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> Float[Tensor, ""]:
        from torch.distributions import Dirichlet, kl_divergence

        drawn_from = Dirichlet(_concentration(arch["alpha"]), validate_args=False)
        uniform = Dirichlet(arch["alpha"].new_ones(arch["alpha"].shape), validate_args=False)
        return self.kl_weight * kl_divergence(drawn_from, uniform).sum()

    def scores(self, arch: Arch) -> Float[Tensor, "edges ops"]:
        concentration = _concentration(arch["alpha"].detach().double())
        return concentration / concentration.sum(dim=-1, keepdim=True)

    def figures(
        self, arch: Arch, weights: Float[Tensor, "edges ops"], candidates: Candidates, t: Tensor
    ) -> dict[str, float]:
        total = _concentration(arch["alpha"].detach()).sum(dim=-1)
        return {"dirichlet/concentration": total.mean().item()}

    def outer_space(self, *, weight_lr: float, fixed: Collection[str] = ()) -> dict[str, Domain]:
        return {"kl_weight": LogUniform(1e-4, 1e-1), **super().outer_space(weight_lr=weight_lr)}


def _concentration(alpha: Float[Tensor, "edges ops"]) -> Float[Tensor, "edges ops"]:
    """`elu(alpha) + 1`, above 0 however small alpha is."""
    import torch

    return (torch.nn.functional.elu(alpha) + 1).clamp(min=1e-6)
