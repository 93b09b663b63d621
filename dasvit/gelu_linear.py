"""GELU and the linear layer behind it, with only GELU's input kept for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["add_gelu_linear"]


def add_gelu_linear(
    out: Float[Tensor, "rows dim"] | None,
    x: Float[Tensor, "rows units"],
    weight: Float[Tensor, "dim units"],
) -> Float[Tensor, "rows dim"]:
    """`out + gelu(x) weightᵀ`; None counts as 0.

    PyTorch keeps both x, for GELU's gradient, and gelu(x), for the weight's. The second follows
    from the first by one elementwise pass: half of the memory of an MLP's hidden units.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        weight = weight.to(torch.get_autocast_dtype(kind))
    return _AddGeluLinear.apply(out, x, weight)


class _AddGeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        hidden = F.gelu(x)
        return F.linear(hidden, weight) if out is None else torch.addmm(out, hidden, weight.T)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        [grad], [x, weight] = grad_outputs, ctx.saved_tensors
        needs_out, needs_x, needs_weight = ctx.needs_input_grad
        grad_weight = grad.T @ F.gelu(x) if needs_weight else None
        grad_x = torch.ops.aten.gelu_backward(grad @ weight, x) if needs_x else None
        return grad if needs_out else None, grad_x, grad_weight
