"""What each measure alone brings: `dasvit`'s step without it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import dasvit.search.architect
import dasvit.search.step
import dasvit.spaces.cell.fused
from benchmarks.workload import Cell, Runner, Sizes, make_batches, make_ours
from dasvit.data.batch import Batch
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.spaces.cell.tokens import TokenSelector
from dasvit.spaces.cell.weighted_linear import _WeightedLinear, weighted_linear

__all__ = ["AS_SHIPPED", "COMPILED", "LAUNCHED", "ablations"]

AS_SHIPPED = "as shipped"
COMPILED = "with torch.compile"
LAUNCHED = "kernels launched one by one"


def ablations(
    cell: Cell,
    sizes: Sizes,
    device: torch.device,
    *,
    precision: str,
    compiled: bool,
    cuda_graph: bool = False,
) -> dict[str, Callable[[], Runner]]:
    """The step as shipped, and without or with one thing at a time.

    Args:
        precision: as shipped on this device; the other one is a row.
        compiled: whether `torch.compile` is a row.
        cuda_graph: whether all but one row replay CUDA graphs.
    """
    batches = make_batches(cell, sizes, device)
    ours = partial(make_ours, cell, sizes, device, batches, cuda_graph=cuda_graph)
    other = "fp32" if precision == "bf16" else "bf16"
    makers: dict[str, Callable[[], Runner]] = {
        AS_SHIPPED: partial(ours, precision=precision),
        "encoders not fused": partial(ours, precision=precision, fused=False),
        "alpha pass with weights not frozen": lambda: _around(
            ours(precision=precision),
            lambda: patch.object(dasvit.search.architect, "_frozen", lambda params: nullcontext()),
        ),
        "weight pass with alpha attached": lambda: _around(
            ours(precision=precision),
            lambda: patch.object(dasvit.search.step, "weight_gradient", _attached_weight_gradient),
        ),
        "AdamW not fused": lambda: _plain_adamw(ours(precision=precision)),
        "attention by its formula": lambda: _around(
            ours(precision=precision), lambda: sdpa_kernel(SDPBackend.MATH)
        ),
        "GELU kept": lambda: _around(ours(precision=precision), _kept_gelu),
        "candidates' outputs never kept": lambda: _around(ours(precision=precision), _no_outputs),
        f"{other} instead of {precision}": partial(ours, precision=other),
        "with recomputation": partial(ours, precision=precision, recompute=True),
    }
    if cell.order == 2:
        makers["weights moved tensor by tensor"] = lambda: _around(
            ours(precision=precision), _tensor_by_tensor
        )
    if cell.token_ratio < 1:
        makers["token scores with the N×N matrix"] = lambda: _around(
            ours(precision=precision), _square_scores
        )
        makers["all tokens (λ = 1)"] = partial(
            make_ours,
            replace(cell, token_ratio=1.0),
            sizes,
            device,
            batches,
            precision=precision,
            cuda_graph=cuda_graph,
        )
    if cuda_graph:
        makers[LAUNCHED] = partial(ours, precision=precision, cuda_graph=False)
    if compiled:
        makers[COMPILED] = partial(ours, precision=precision, compile=True)
    return makers


def _around(runner: Runner, context: Callable) -> Runner:
    runner.around = context
    return runner


def _attached_weight_gradient(model: SuperNet, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor]:
    """As `dasvit.search.architect.weight_gradient`, the graph leading back to alpha."""
    images, labels = batch
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    grads = torch.autograd.grad(
        loss, model.weight_parameters(), allow_unused=True, materialize_grads=True
    )
    return list(grads), loss.detach(), logits.detach()


def _plain_adamw(runner: Runner) -> Runner:
    groups = [
        {name: group[name] for name in ("params", "lr", "weight_decay")}
        for group in runner.step.weight_optimizer.param_groups
    ]
    capturable = runner.step.config.cuda_graph
    runner.step.weight_optimizer = torch.optim.AdamW(groups, capturable=capturable)
    return runner


def _kept_gelu() -> Any:
    """GELU's values are kept for the backward pass beside what they are computed from."""

    def kept(
        scales: Tensor,
        widths: Sequence[int],
        columns: Tensor,
        weight: Tensor,
        bias: Tensor,
        inputs: Sequence[Tensor],
        hidden: Tensor | None = None,
    ) -> Tensor:
        units = [] if hidden is None else F.gelu(hidden).split([*widths[len(inputs) :]], dim=1)
        return weighted_linear(scales, widths, columns, weight, bias, [*inputs, *units])

    return patch.object(dasvit.spaces.cell.fused, "weighted_linear", kept)


def _no_outputs() -> Any:
    """Nor on edges that read the first tokens, in alpha's passes."""

    def never(
        scales: Tensor,
        widths: Sequence[int],
        columns: Tensor,
        weight: Tensor,
        bias: Tensor,
        inputs: Sequence[Tensor],
        hidden: Tensor | None = None,
    ) -> Tensor:
        return _WeightedLinear.apply(scales, columns, weight, bias, hidden, *inputs)

    return patch.object(dasvit.spaces.cell.fused, "weighted_linear", never)


@contextmanager
def _tensor_by_tensor():
    """The arithmetic of w' and of w ± εv without PyTorch's operations on lists of tensors."""
    add = torch._foreach_add_

    def add_(xs: list[Tensor], ys: Any, **alpha: float) -> None:
        if not isinstance(ys, list):  # an optimiser counts its steps
            add(xs, ys, **alpha)
            return
        for x, y in zip(xs, ys, strict=True):
            x.add_(y, **alpha)

    def copy_(xs: list[Tensor], ys: list[Tensor]) -> None:
        for x, y in zip(xs, ys, strict=True):
            x.copy_(y)

    def mul(xs: list[Tensor], by: Tensor) -> list[Tensor]:
        return [x * by for x in xs]

    with ExitStack() as stack:
        for name, loop in (("add_", add_), ("copy_", copy_), ("mul", mul)):
            stack.enter_context(
                patch.object(dasvit.search.architect.torch, f"_foreach_{name}", loop)
            )
        yield


@contextmanager
def _square_scores():
    def scores(self: TokenSelector, patches: Tensor) -> Tensor:
        query, key = self.query(patches), self.key(patches)
        return (query @ key.transpose(1, 2) / patches.shape[-1] ** 0.5).mean(dim=2)

    with ExitStack() as stack:
        stack.enter_context(patch.object(TokenSelector, "scores", scores))
        yield
