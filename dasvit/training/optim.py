"""Optimisers and learning-rate schedules that the search and the retraining share."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["adamw", "all_finite", "clip_gradients", "cosine_lr", "norms_and_biases"]


def adamw(
    params: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    spared: Iterable[nn.Parameter] = (),
    capturable: bool = False,
) -> torch.optim.AdamW:
    """AdamW in PyTorch's fused form.

    Args:
        spared: those of `params` that the weight decay leaves alone.
        capturable: its step may be part of a CUDA graph.
    """
    # Paper gap: whether norms and biases decay, see docs/fidelity.md.
    no_decay = {id(p) for p in spared}
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for p in params:
        groups[id(p) in no_decay]["params"].append(p)
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        filled, lr=lr, weight_decay=weight_decay, fused=True, capturable=capturable
    )


def norms_and_biases(model: nn.Module) -> list[nn.Parameter]:
    """What many recipes spare from weight decay: norms, biases, CLS and positions; all but the
    weights of linear layers and convolutions."""
    return [p for name, p in model.named_parameters() if p.dim() not in (2, 4) or "bias" in name]


def cosine_lr(
    step: int, total_steps: int, *, lr: float, warmup_steps: int = 0, warmup_lr: float = 0.0
) -> float:
    """Learning rate of a 0-based step: linear from `warmup_lr` to `lr` over `warmup_steps`, then
    half a cosine from `lr` towards 0."""
    if step < warmup_steps:
        return warmup_lr + (lr - warmup_lr) * step / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * lr * (1 + math.cos(math.pi * done))


def clip_gradients(grads: list[Tensor], max_norm: float) -> None:
    """Scale gradients in place so that their joint norm is at most `max_norm`; 0 does nothing.

    Stays on the device: nothing waits for the value of the norm.
    """
    if max_norm > 0:
        norm = nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def all_finite(params: list[nn.Parameter]) -> bool:
    """Whether no parameter holds inf or nan. Waits for the device: once an epoch."""
    norms = torch._foreach_norm([p.detach() for p in params])
    return bool(torch.stack(list(norms)).isfinite().all())
