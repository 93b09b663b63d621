"""A second opinion on multiply-adds, where the package fvcore is installed."""

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["fvcore_macs"]

_PRODUCTS = ("addmm", "bmm", "conv", "einsum", "linear", "matmul", "mm")
_ATTENTION = "scaled_dot_product_attention"


def fvcore_macs(model: "nn.Module", input_size: tuple[int, ...]) -> int | None:
    """Multiply-adds of all products as fvcore counts them by tracing one forward pass, to compare
    with `dasvit.costs.Complexity.macs_total`. None where fvcore is not installed.

    Args:
        model: left as it was.
        input_size: of one image or sequence, without the batch axis.
    """
    import torch

    try:
        with warnings.catch_warnings():
            # It compiles a loss on import, which nothing here uses.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
            from fvcore.nn import FlopCountAnalysis
    except ModuleNotFoundError:
        return None

    def attention(inputs: list[Any], outputs: list[Any]) -> int:
        query, key, value = (v.type().sizes() for v in inputs[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    # Tracing a convolution fails on the meta device. Zeros: an index in a buffer must be valid.
    model = copy.deepcopy(model).to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
        dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
        analysis = FlopCountAnalysis(model, torch.zeros(1, *input_size, dtype=dtype))
        analysis.set_op_handle(f"aten::{_ATTENTION}", attention)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts = analysis.by_operator()  # norms and pooling too
    return int(sum(counts[name] for name in (*_PRODUCTS, _ATTENTION)))
