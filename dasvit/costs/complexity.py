"""Parameters and multiply-adds of a network, as the paper's Table I counts them.

"FLOPs" in that table are multiply-adds. Two counts are in use: linear and convolution layers
only (the paper's column, but for its ViT-B/16 row), and the same with the two attention products
QKᵀ and AV. Both are counted here, with fvcore, and always shown together.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dasvit.costs.flop_handles import ATTENTION, HANDLES, LINEAR, OPAQUE, FlopCountAnalysis

__all__ = [
    "TABLE_HEADER",
    "Complexity",
    "check_num_params",
    "complexity",
    "evaluation_mode",
    "format_count",
    "torch_macs",
]

MAX_PARAMS = 10**10

TABLE_HEADER = (
    f"| network | parameters | multiply-adds, {LINEAR} | with {ATTENTION} |\n"
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
            f"{format_count(self.macs_linear)} multiply-adds, {LINEAR}; "
            f"{format_count(self.macs_total)} with {ATTENTION}"
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
    analysis = FlopCountAnalysis(model, inputs).clear_op_handles().set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with evaluation_mode(model), torch.no_grad():
        counts = analysis.by_operator()
    opaque = [op for op in analysis.unsupported_ops() if op.startswith(OPAQUE)]
    if opaque:
        warnings.warn(f"multiply-adds inside {', '.join(opaque)} are not counted", stacklevel=2)
    return Complexity(
        num_params=num_params,
        macs_linear=int(counts[LINEAR]),
        macs_attention=int(counts[ATTENTION]),
    )


def torch_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Multiply-adds by PyTorch's own counter, of products with weights and of attention alike: a
    second opinion on `Complexity.macs_total`.

    A copy of the model runs on the meta device, in evaluation mode.
    """
    # Under no_grad the counter's module hooks fail on some networks (timm's CaiT).
    shapes = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    like = next(shapes.parameters(), torch.empty(0))
    with FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, *input_size, dtype=like.dtype, device="meta"))
    return counter.get_total_flops() // 2  # it counts a multiply-add as two operations


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
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, every module's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
