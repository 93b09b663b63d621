"""The output projections of an edge's candidates and their weighted sum, as one function."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["autocast_dtype", "weighted_linear"]


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """What matrix products of a tensor are computed in: its own dtype unless under autocast."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def weighted_linear(
    scales: Float[Tensor, " terms"],
    widths: Sequence[int],
    columns: Int[Tensor, " width"],
    weight: Float[Tensor, "dim width"],
    bias: Float[Tensor, "terms dim"],
    inputs: Sequence[Float[Tensor, "rows units"]],
    hidden: Float[Tensor, "rows units"] | None = None,
) -> Float[Tensor, "rows dim"]:
    """`Σ_i s_i · (x_i W_iᵀ + b_i)`.

    The gradient of a scale needs no term `t_i` of its own: `⟨G, t_i⟩` is `⟨G W_i, x_i⟩`, of which
    `G W_i` is the gradient of the input but for the scale, or `⟨W_i, Gᵀ x_i⟩`, of which `Gᵀ x_i`
    is that of the weight. Only where the scales alone have a gradient, terms are formed and kept,
    and nothing else. Of `gelu(hidden)` only `hidden` is kept for the backward pass: the rest
    follows by one elementwise pass.

    Args:
        scales: s.
        widths: units of each x_i.
        columns: the same on the device: the term of each column of `weight`.
        weight: the W_i side by side.
        bias: the b_i as rows.
        inputs: the first x_i, one by one.
        hidden: the other x_i side by side, before GELU.
    """
    tensors = [weight, bias, *inputs] if hidden is None else [weight, bias, *inputs, hidden]
    if scales.requires_grad and not any(t.requires_grad for t in tensors):
        units = [] if hidden is None else F.gelu(hidden).split([*widths[len(inputs) :]], dim=1)
        parts = zip([*inputs, *units], weight.split([*widths], dim=1), bias, strict=True)
        terms = [F.linear(x, w, b) for x, w, b in parts]
        scaled = [s * t for s, t in zip(scales.unbind(), terms, strict=True)]
        return sum(scaled[1:], start=scaled[0])
    return _WeightedLinear.apply(scales, columns, weight, bias, hidden, *inputs)


class _WeightedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scales: Tensor,
        columns: Tensor,
        weight: Tensor,
        bias: Tensor,
        hidden: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(scales, columns, weight, bias, hidden, *inputs)
        ctx.dtype = autocast_dtype(weight)
        scaled = _product(weight, scales[columns], ctx.dtype)
        out = (scales @ bias).to(ctx.dtype)
        for x, part in _parts(hidden, inputs, scaled):
            # The biases are broadcast in the first product, the next ones add to it in place.
            out = out.addmm_(x, part.T) if _in_place(out) else torch.addmm(out, x, part.T)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        scales, columns, weight, bias, hidden, *inputs = ctx.saved_tensors
        needs_scales, _, needs_weight, needs_bias, needs_hidden, *needs_inputs = (
            ctx.needs_input_grad
        )
        grad = grad_outputs[0].to(ctx.dtype)
        by_column = scales[columns]
        # With respect to the scales by way of the weight's gradient where that is computed
        # anyway: the smaller of the two sums.
        by_input = needs_scales and not needs_weight
        used = weight.to(ctx.dtype) if by_input else _product(weight, by_column, ctx.dtype)

        grad_inputs: list[Tensor | None] = []
        grad_weights: list[Tensor] = []
        grad_columns: list[Tensor] = []
        tensors = inputs if hidden is None else [*inputs, hidden]
        needs = needs_inputs if hidden is None else [*needs_inputs, needs_hidden]
        sizes = [t.shape[1] for t in tensors]
        for tensor, part, needed, s in zip(
            tensors, used.split(sizes, dim=1), needs, by_column.split(sizes), strict=True
        ):
            x = F.gelu(tensor) if tensor is hidden else tensor
            if needs_weight:
                grad_weights.append(grad.T @ x)
            # GELU's values are not held beside what follows.
            kept = x if by_input else None
            del x
            if not (needed or by_input):
                grad_inputs.append(None)
                continue
            grad_x = grad @ part
            if kept is not None:
                grad_columns.append((grad_x * kept).sum(dim=0, dtype=scales.dtype))
                scale = s.to(ctx.dtype)
                # In place unless this pass is itself differentiated: memory is short here.
                grad_x = grad_x * scale if torch.is_grad_enabled() else grad_x.mul_(scale)
            grad_inputs.append(grad_x if needed else None)
        grad_hidden = grad_inputs.pop() if hidden is not None else None
        if grad_hidden is not None:
            grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)

        grad_scales = grad_weight = grad_bias = None
        if needs_weight:
            unscaled = torch.cat(grad_weights, dim=1)
            # In the weight's dtype: these promote.
            grad_weight = unscaled * by_column
            if needs_scales:
                grad_columns.append((unscaled * weight).sum(dim=0))
        if needs_scales or needs_bias:
            total = grad.sum(dim=0, dtype=bias.dtype)
            if needs_bias:
                grad_bias = torch.outer(scales, total)
            if needs_scales:
                one_hot = columns == torch.arange(len(scales), device=columns.device).unsqueeze(1)
                grad_scales = one_hot.to(scales.dtype) @ torch.cat(grad_columns) + bias @ total
        return grad_scales, None, grad_weight, grad_bias, grad_hidden, *grad_inputs


def _product(weight: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight * factors` in another dtype, in one pass through memory where no graph is built."""
    if torch.is_grad_enabled():
        return (weight * factors).to(dtype)
    return torch.mul(weight, factors, out=torch.empty_like(weight, dtype=dtype))


def _in_place(out: Tensor) -> bool:
    # PyTorch 2.11 loses the gradient of an output that a compiled function has written twice.
    return out.dim() == 2 and not torch.compiler.is_compiling()


def _parts(
    hidden: Tensor | None, inputs: Iterable[Tensor], weight: Tensor
) -> Iterable[tuple[Tensor, Tensor]]:
    """Every x with its columns of the weight; GELU is computed when its turn comes."""
    start = 0
    for x in inputs:
        yield x, weight[:, start : start + x.shape[1]]
        start += x.shape[1]
    if hidden is not None:
        yield F.gelu(hidden), weight[:, start:]
