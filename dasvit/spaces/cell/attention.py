"""Scaled dot-product attention (Eq. 1), by whichever way is the faster one."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["FEW_TOKENS", "attention"]

FEW_TOKENS = range(16, 49)
"""Numbers of tokens for which plain products beat PyTorch's kernel on a CPU, 1.0 to 1.8 times at
widths 48 and 192; with fewer they lose, with more at large batches. See docs/performance.md."""


def attention(
    q: Float[Tensor, "batch heads tokens channels"],
    k: Float[Tensor, "batch heads tokens channels"],
    v: Float[Tensor, "batch heads tokens channels"],
) -> Float[Tensor, "batch heads tokens channels"]:
    """`softmax(q kᵀ / √channels) v`."""
    if not _by_products(q):
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores.softmax(dim=-1) @ v


def _by_products(q: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False  # what leaves this machine is not bound to its kernels
    # Tensors without data stand for those of a GPU.
    real = type(q) is Tensor and q.device.type == "cpu"
    return real and q.dtype != torch.bfloat16 and q.shape[-2] in FEW_TOKENS
