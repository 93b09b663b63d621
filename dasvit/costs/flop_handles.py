"""fvcore's handles for the products of a traced network: which count they belong to, and how many
multiply-adds each is.

fvcore calls a handle with the inputs and outputs of a node of the traced graph. Its own for
products are not used: they know no attention product, fail on vectors and on broadcasting.
"""

import math
import warnings
from collections import Counter
from typing import Any

with warnings.catch_warnings():
    # fvcore compiles a loss on import, which nothing here uses.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, get_shape

__all__ = ["ATTENTION", "HANDLES", "LINEAR", "OPAQUE", "FlopCountAnalysis"]

LINEAR = "linear and convolution layers"
ATTENTION = "attention products"

OPAQUE = ("prim::PythonOp", "prim::CallFunction", "aten::lstm", "aten::gru", "aten::rnn")
"""A custom autograd function, a scripted function, a recurrent layer: products that no handle
sees."""

_RESHAPES = {
    f"aten::{op}"
    for op in (
        "contiguous", "expand", "flatten", "numpy_T", "permute", "reshape", "select", "slice",
        "squeeze", "t", "to", "transpose", "unsqueeze", "view",
    )
}  # fmt: skip


def _is_weight(value: Any) -> bool:
    """Whether a traced value is a parameter or buffer, or one reshaped."""
    while value.node().kind() in _RESHAPES:
        value = next(value.node().inputs())
    source = value.node()
    if source.kind() != "prim::Param":
        return False
    image = next(source.outputs())  # the graph's inputs: the model's own first, then its tensors
    return value.debugName() != image.debugName()


def _shape(value: Any) -> list[int]:
    shape = get_shape(value)
    assert shape is not None, "a product of something without a shape"
    return shape


def _product(left: Any, right: Any, macs: int) -> Counter[str]:
    return Counter({LINEAR if _is_weight(left) or _is_weight(right) else ATTENTION: macs})


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    left, right = inputs[:2]
    return _product(left, right, math.prod(_shape(outputs[0])) * _shape(left)[-1])


def _addmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return _matmul(inputs[1:3], outputs)


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({LINEAR: math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({LINEAR: sum(conv_flop_jit(inputs, outputs).values())})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    query, key, value = (_shape(v) for v in inputs[:3])
    *batch_heads_queries, width = query
    return Counter({ATTENTION: math.prod(batch_heads_queries) * key[-2] * (width + value[-1])})


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    equation = inputs[0].toIValue().replace(" ", "")
    operands = list(inputs[1].node().inputs())
    if len(operands) < 2:
        return Counter()
    if len(operands) > 2:
        raise ValueError(
            f"multiply-adds of einsum {equation!r} depend on its order: write it as products of two"
        )
    terms, arrow, result = equation.partition("->")
    if not arrow:  # implicit output: the letters that occur once
        result = "".join(letter for letter in terms if terms.count(letter) == 1)
    sizes: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        shape = _shape(operand)
        before, _, after = term.partition("...")
        sizes |= dict(zip(before, shape, strict=False))
        sizes |= dict(zip(reversed(after), reversed(shape), strict=False))
    contracted = math.prod(size for letter, size in sizes.items() if letter not in result)
    left, right = operands
    return _product(left, right, math.prod(_shape(outputs[0])) * contracted)


HANDLES = {
    "aten::linear": _linear,
    "aten::_convolution": _convolution,
    "aten::scaled_dot_product_attention": _attention,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::mv": _matmul,
    "aten::addmm": _addmm,
    "aten::baddbmm": _addmm,
    "aten::einsum": _einsum,
}
