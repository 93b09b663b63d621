"""Parameters and multiply-adds of a network, as the paper's Table I counts them.

"FLOPs" in that table are multiply-adds. Two counts are in use: linear and convolution layers
only (the paper's column, but for its ViT-B/16 row), and the same with the two attention products
QKᵀ and AV. Both are counted here, with fvcore, and always shown together.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    # fvcore compiles a loss on import, which nothing here uses.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_jit, get_shape

__all__ = ["TABLE_HEADER", "Complexity", "check_num_params", "complexity", "format_count"]

MAX_PARAMS = 10**10

_LINEAR = "linear and convolution layers"
_ATTENTION = "attention products"

TABLE_HEADER = (
    f"| network | parameters | multiply-adds, {_LINEAR} | with {_ATTENTION} |\n"
    "| --- | ---: | ---: | ---: |"
)
"""Head of a Markdown table whose rows are `Complexity.table_row`."""


def format_count(count: int) -> str:
    """A count with its unit: `50.4 M`, `9.88 G`, `768`; two decimals below 10, else one."""
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            value = count / factor
            return f"{value:.2f} {unit}" if round(value, 2) < 10 else f"{value:.1f} {unit}"
    return str(count)


def check_num_params(count: int) -> None:
    """Refuse a network that no single device trains: with its gradient and AdamW's two moments, a
    parameter takes 16 bytes.

    Raises:
        ValueError: more than 10 G parameters, 160 GB.
    """
    if count > MAX_PARAMS:
        raise ValueError(
            f"the network has {format_count(count)} parameters, more than one device can train "
            f"({format_count(MAX_PARAMS)}); choose a smaller dim, fewer layers, or smaller "
            "operations"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Complexity:
    """What a network costs; multiply-adds are of one forward pass of one image.

    Attributes:
        num_params: parameters, a shared one once.
        macs_linear: multiply-adds of products with a weight: linear and convolution layers.
        macs_attention: multiply-adds of products of two activations: QKᵀ and AV.
    """

    num_params: int
    macs_linear: int
    macs_attention: int

    @property
    def macs_total(self) -> int:
        """Multiply-adds with the attention products."""
        return self.macs_linear + self.macs_attention

    def __str__(self) -> str:
        return (
            f"{format_count(self.num_params)} parameters; "
            f"{format_count(self.macs_linear)} multiply-adds, {_LINEAR}; "
            f"{format_count(self.macs_total)} with {_ATTENTION}"
        )

    def table_row(self, name: str) -> str:
        """A row for a Markdown table under `TABLE_HEADER`."""
        counts = (self.num_params, self.macs_linear, self.macs_total)
        return f"| {' | '.join([name, *map(format_count, counts)])} |"


def complexity(model: nn.Module, input_size: tuple[int, ...]) -> Complexity:
    """Parameters and multiply-adds of `model`, by tracing one forward pass.

    Biases, norms, activations, softmax and pooling count as 0. A supernet is counted with all
    its candidates. The model is traced where it is, in evaluation mode, and left as it was; one on
    the meta device is counted on an empty copy in memory.

    Args:
        model: takes a batch of `input_size`.
        input_size: without the batch axis: (channels, height, width) in pixels for a network,
            (tokens, dim) for a candidate operation.

    Raises:
        ValueError: an einsum of more than two tensors, which has no single count.
    """
    num_params = sum(p.numel() for p in model.parameters())
    if any(tensor.is_meta for tensor in _tensors(model)):
        model = _zeros_like(model)
    like = next(model.parameters(), torch.empty(0))
    inputs = torch.zeros(1, *input_size, dtype=like.dtype, device=like.device)
    analysis = FlopCountAnalysis(model, inputs).clear_op_handles().set_op_handle(**_HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with _evaluation_mode(model), torch.no_grad():
        counts = analysis.by_operator()
    opaque = [op for op in analysis.unsupported_ops() if op.startswith(_OPAQUE)]
    if opaque:
        warnings.warn(f"multiply-adds inside {', '.join(opaque)} are not counted", stacklevel=2)
    return Complexity(
        num_params=num_params,
        macs_linear=int(counts[_LINEAR]),
        macs_attention=int(counts[_ATTENTION]),
    )


# A custom autograd function, a scripted function, a recurrent layer: products that no handle sees.
_OPAQUE = ("prim::PythonOp", "prim::CallFunction", "aten::lstm", "aten::gru", "aten::rnn")


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _zeros_like(model: nn.Module) -> nn.Module:
    # Tracing a convolution fails on the meta device. Zeros: an index in a buffer must be valid.
    model = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in _tensors(model):
            tensor.zero_()
    return model


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, every module's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# Handles: fvcore calls them with the inputs and outputs of a node of the traced graph. Its own
# for products are not used: they know no attention product, fail on vectors and on broadcasting.

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
    return Counter({_LINEAR if _is_weight(left) or _is_weight(right) else _ATTENTION: macs})


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    left, right = inputs[:2]
    return _product(left, right, math.prod(_shape(outputs[0])) * _shape(left)[-1])


def _addmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return _matmul(inputs[1:3], outputs)


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({_LINEAR: math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({_LINEAR: sum(conv_flop_jit(inputs, outputs).values())})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    query, key, value = (_shape(v) for v in inputs[:3])
    *batch_heads_queries, width = query
    return Counter({_ATTENTION: math.prod(batch_heads_queries) * key[-2] * (width + value[-1])})


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


_HANDLES = {
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
