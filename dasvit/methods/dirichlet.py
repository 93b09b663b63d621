"""The gradient of a Dirichlet draw that was made elsewhere."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["DrawnFrom"]


class DrawnFrom(torch.autograd.Function):
    """`apply(concentration, draw)` returns the draw, with the gradient that drawing it from
    Dirichlet(concentration) has: implicit reparameterisation (Figurnov et al., arXiv:1805.08498).

    So a step can draw once, outside what is captured or run several times.
    """

    @staticmethod
    def forward(
        ctx: Any, concentration: Float[Tensor, "rows ops"], draw: Float[Tensor, "rows ops"]
    ) -> Float[Tensor, "rows ops"]:
        ctx.save_for_backward(concentration, draw)
        return draw.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Float[Tensor, "rows ops"], None]:
        (gradient,) = grad_outputs
        concentration, draw = ctx.saved_tensors
        total = concentration.sum(dim=-1, keepdim=True).expand_as(concentration)
        along = torch._dirichlet_grad(draw, concentration, total)
        return along * (gradient - (draw * gradient).sum(dim=-1, keepdim=True)), None
