"""What search and retraining share, against its formulas; and what a batch goes through."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.reference import cosine_lr
from support.runs import ENCODER, retrain_config
from torch import Tensor, nn

from dasvit.data.datasets import load_data
from dasvit.run.distributed import Processes
from dasvit.spaces.cell.edges import DerivedCell
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.training.loop import Training
from dasvit.training.networks import build_network
from dasvit.training.recipe import (
    clip_gradients,
    make_average,
    make_mixing,
    make_optimizer,
    make_schedule,
    norms_and_biases,
)

CPU = torch.device("cpu")


# --- Schedule


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "lr"), [(1, 0, 0.2), (10, 0, 0.2), (35, 10, 1e-3)]
)
def test_timms_schedule_is_the_papers(steps: int, warmup_steps: int, lr: float) -> None:
    """Equal to the last bits of a double, so that the fused kernels, in float32, see the same."""
    optimizer = make_optimizer([nn.Parameter(torch.zeros(2))], lr=lr, weight_decay=0.0)
    options = {"warmup_steps": warmup_steps, "warmup_lr": 1e-6}
    schedule = make_schedule(optimizer, steps=steps, **options)
    rates = []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    literal = [cosine_lr(step, steps, lr=lr, **options) for step in range(steps)]
    assert rates == pytest.approx(literal, rel=1e-14)
    assert np.array_equal(np.float32(rates), np.float32(literal))
    assert rates[warmup_steps] == max(rates) == lr
    if warmup_steps:
        assert rates[0] == 1e-6 and rates[warmup_steps // 2] == pytest.approx((lr + 1e-6) / 2)
    schedule.step_update(steps // 2)  # a resumed run enters anywhere
    assert optimizer.param_groups[0]["lr"] == rates[steps // 2]


# --- Optimiser


@pytest.mark.parametrize("fused", [True, False])
def test_only_matrices_decay_on_request(
    fused: bool, make_supernet: Callable[..., SuperNet]
) -> None:
    """With gradients of zero, AdamW's step is its weight decay alone."""
    model = make_supernet(fused=fused, token_ratio=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    spared = norms_and_biases(model)
    optimizer = make_optimizer(model.parameters(), lr=0.5, weight_decay=0.1, spared=spared)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        vector = "bias" in name or "norm" in name or name.endswith(("cls_token", "positions"))
        factor = 1.0 if vector else 0.95
        torch.testing.assert_close(p.detach(), factor * before[name], msg=name)


def test_adamw_is_torchs_by_default() -> None:
    """One step on gradients of one: w − lr·(1 + decay·w), ε aside."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
            p.grad = torch.ones_like(p)
    optimizer = make_optimizer(model.parameters(), lr=0.1, weight_decay=0.5, capturable=True)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group["fused"] and group["capturable"] and len(group["params"]) == 4
    if not torch.cuda.is_available():
        group["capturable"] = False
    optimizer.step()
    for p in model.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 2.0 - 0.1 * (1 + 0.5 * 2.0)))


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_clipping_is_torchs(max_norm: float) -> None:
    params = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5))]
    for p in params:
        p.grad = torch.randn_like(p)
    grads = [p.grad.clone() for p in params]
    before = [g.clone() for g in grads]
    clip_gradients(grads, max_norm)
    nn.utils.clip_grad_norm_(params, max_norm or 1e9)
    for g, p, b in zip(grads, params, before, strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-5, atol=1e-7)
        assert torch.equal(g, b) == (max_norm != 0.5)


# --- What a batch goes through


def training(**changes: Any) -> Training:
    config = retrain_config(**changes)
    data = load_data(config.data, CPU)
    torch.manual_seed(0)
    model = build_network(config, in_channels=1, num_classes=10)
    data = replace(data, train=data.train.subset(torch.arange(96)))
    return Training(config, model, data, Processes())


@pytest.mark.parametrize("mixes", [False, True])
def test_a_batch_in_parts_takes_the_same_step(mixes: bool) -> None:
    found = []
    for parts in (1, 4):
        run = training(accumulate=parts, label_smoothing=0.1, mixup=0.5 if mixes else 0.0)
        record = run.epoch()
        found.append((record.train_loss, record.train_accuracy, *run.model.parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-5)


def test_mixing_makes_shares_of_classes() -> None:
    assert make_mixing(retrain_config(), 10) is None
    mixing = make_mixing(retrain_config(mixup=0.8, cutmix=1.0, label_smoothing=0.1), 10)
    assert mixing is not None
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9)
    before = images.clone()
    mixed, targets = mixing(images, labels)
    assert torch.equal(images, before)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(9))
    assert targets.min() == pytest.approx(0.01)  # smoothed
    assert not torch.equal(mixed[:8], before[:8])
    assert torch.equal(mixed[8], before[8])  # pairs: the odd one stays
    assert targets[8].argmax() == 8 and targets[8].max() == pytest.approx(0.91)
    alone, targets = mixing(images[:1], labels[:1])
    assert torch.equal(alone, before[:1]) and targets.argmax() == 0


def test_settings_reach_the_step() -> None:
    """Each gives other losses than the plain run; those in the second line nearly the same."""
    (plain, second) = (run.epoch().train_loss for run in (training(), training(seed=1)))
    assert plain != second  # another order of the images
    for changes in ({"label_smoothing": 0.5}, {"grad_clip": 1e-6}, {"mixup": 0.5}, {"lr": 1e-3}):
        assert training(**changes).epoch().train_loss != plain, changes
    for changes in ({"precision": "bf16"}, {"channels_last": True}):
        run = training(**changes)
        assert run.epoch().train_loss == pytest.approx(plain, rel=0.05)
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_network_trains_as_well() -> None:
    plain, compiled = training(), training(compile=True)
    losses = [run.epoch().train_loss for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert set(compiled.state()["model"]) == set(plain.state()["model"])


def test_the_average_follows_the_weights() -> None:
    run = training(ema_decay=0.5)
    expected = run.model.state_dict()["head.weight"].clone()
    step = run._step

    def watched(*batch: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal expected
        out = step(*batch)
        expected = 0.5 * expected + 0.5 * run.model.state_dict()["head.weight"]
        return out

    run._step = watched  # type: ignore[method-assign]
    run.epoch()
    torch.testing.assert_close(run.result.state_dict()["head.weight"], expected)
    assert run.result is not run.model and make_average(retrain_config(), run.model) is None


def test_stochastic_depth_drops_operations_and_no_identity() -> None:
    kept = DerivedCell(ENCODER, 12).eval()
    cell = DerivedCell(ENCODER, 12, drop_path=0.999999)
    cell.load_state_dict(kept.state_dict())
    x, y = torch.randn(2, 3, 5, 12)
    torch.testing.assert_close(cell.eval()(x, y), kept(x, y))
    assert ENCODER.nodes[1][0].operation == "identity" and ENCODER.nodes[1][0].source == 1
    torch.testing.assert_close(cell.train()(x, y), y)
