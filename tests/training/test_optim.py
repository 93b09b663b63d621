"""Schedules, clipping and AdamW against their formulas."""

import itertools
import math
from collections.abc import Callable

import pytest
import timm
import torch
from dasvit.training.optim import adamw, clip_gradients, cosine_lr, norms_and_biases
from torch import nn

from dasvit.spaces.cell.supernet import SuperNet


def test_cosine_without_warm_up() -> None:
    rates = [cosine_lr(i, 10, lr=0.2) for i in range(10)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.1)
    for i, rate in enumerate(rates):
        assert rate == pytest.approx(0.1 * (1 + math.cos(math.pi * i / 10)))
    assert all(a > b > 0 for a, b in itertools.pairwise(rates))
    assert cosine_lr(10, 10, lr=0.2) == pytest.approx(0)


def test_linear_warm_up_then_cosine() -> None:
    """The paper's: 20 epochs from 1e-6 to 1e-3, then a cosine over the other 480."""
    options = {"lr": 1e-3, "warmup_steps": 20, "warmup_lr": 1e-6}
    assert cosine_lr(0, 500, **options) == 1e-6
    assert cosine_lr(10, 500, **options) == pytest.approx((1e-3 + 1e-6) / 2)
    steps = [cosine_lr(i + 1, 500, **options) - cosine_lr(i, 500, **options) for i in range(20)]
    assert steps == pytest.approx([(1e-3 - 1e-6) / 20] * 20)
    assert cosine_lr(20, 500, **options) == 1e-3
    assert cosine_lr(260, 500, **options) == pytest.approx(5e-4)
    assert max(cosine_lr(i, 500, **options) for i in range(500)) == 1e-3


def test_a_single_step() -> None:
    assert cosine_lr(0, 1, lr=0.2) == 0.2


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("spare", [True, False])
def test_only_matrices_decay_on_request(
    fused: bool, spare: bool, make_supernet: Callable[..., SuperNet]
) -> None:
    """With gradients of zero, AdamW's step is its weight decay alone."""
    model = make_supernet(fused=fused, token_ratio=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(p.any() for p in before.values())
    spared = norms_and_biases(model) if spare else []
    optimizer = adamw(model.parameters(), lr=0.5, weight_decay=0.1, spared=spared)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        vector = "bias" in name or "norm" in name or name.endswith(("cls_token", "positions"))
        factor = 1.0 if spare and vector else 0.95
        torch.testing.assert_close(p.detach(), factor * before[name], msg=name)


def test_what_is_spared_of_a_plain_vit() -> None:
    model = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2
    )
    spared = {id(p) for p in norms_and_biases(model)}
    kept = {name for name, p in model.named_parameters() if id(p) not in spared}
    assert kept == {
        "patch_embed.proj.weight",
        *(f"blocks.0.{n}.weight" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        "head.weight",
    }


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(max_norm: float) -> None:
    params = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5))]
    for p in params:
        p.grad = torch.randn_like(p)
    grads = [p.grad.clone() for p in params]
    before = [g.clone() for g in grads]
    clip_gradients(grads, max_norm)
    nn.utils.clip_grad_norm_(params, max_norm)
    for g, p, b in zip(grads, params, before, strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-5, atol=1e-7)
        assert torch.equal(g, b) == (max_norm == 100.0)
    norm = torch.cat([g.flatten() for g in grads]).norm().item()
    assert norm <= max_norm
    if max_norm == 0.5:
        assert norm == pytest.approx(0.5, rel=1e-4)


def test_clipping_at_zero_does_nothing() -> None:
    grads = [torch.randn(4) * 1e6]
    before = grads[0].clone()
    clip_gradients(grads, 0.0)
    assert torch.equal(grads[0], before)


def test_adamw_decays_all_alike() -> None:
    """One step on gradients of one: w − lr·(1 + decay·w), bit of epsilon aside."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
    optimizer = adamw(model.parameters(), lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in model.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 2.0 - 0.1 * (1 + 0.5 * 2.0)))
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 4
