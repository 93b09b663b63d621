"""Planned memory against executed memory, and what a plan must say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dasvit.methods.losses import _mask
from support.plans import plan_config
from torch import Tensor, nn

import dasvit.spaces.cell.operations
from dasvit.costs import LiveMemory
from dasvit.presets import get_preset
from dasvit.run.settings import SettingError
from dasvit.search.config import SearchConfig
from dasvit.search.memory import (
    BLOCK,
    StagePlan,
    _without_values,
    heaviest_operations,
    peak_of,
    plan_search,
    plan_stage,
)
from dasvit.search.step import BilevelStep, build_supernet
from dasvit.spaces.cell.genotype import edge_list
from dasvit.spaces.cell.operations import register_operation


def _step(config: SearchConfig) -> Callable[[], object]:
    """Of the first stage, as a search takes it."""
    edge_ops = tuple(config.operations for _ in edge_list(config.num_nodes))
    model = build_supernet(config, edge_ops, num_layers=1, in_channels=3, num_classes=100)
    step = BilevelStep(config, model)
    size, batch = config.data.image_size, config.batch_size
    batches = [
        (torch.zeros(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)) for _ in range(2)
    ]
    return lambda: step(*batches, weight_lr=1e-3)


@pytest.mark.parametrize("token_ratio", [1.0, 0.5])
@pytest.mark.parametrize("xi", [0.0, 0.01])
@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"fused": False}], ids=str)
def test_a_plan_is_what_a_real_step_takes(changes: dict, xi: float, token_ratio: float) -> None:
    config = plan_config(xi=xi, token_ratio=token_ratio, **changes)
    with LiveMemory(BLOCK) as memory:
        step = _step(config)
        step()
        resident = memory.peak = memory.live
        step()
        executed = memory.peak
    planned = plan_stage(config, 0)
    assert planned.resident == pytest.approx(resident, rel=0.01)
    assert planned.peak == pytest.approx(executed, rel=0.01)


def test_a_model_without_values_shares_what_it_shared() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Identity())
        model[1].weight = model[0].weight
        model[1].bias.requires_grad_(False)
        model.register_buffer("scale", torch.ones(()))

    def make() -> Callable[[], object]:
        _without_values(model)
        assert isinstance(model[0].weight, nn.Parameter)
        assert model[0].weight is model[1].weight
        assert [p.requires_grad for p in model.parameters()] == [True, False]
        return lambda: model(torch.zeros(2, 4)) * model.scale

    assert peak_of(make, block=1)[0] == 4 * (16 + 4 + 1)


class Shifted(nn.Module):
    """An operation of a user's own, with tensors that are neither parameters nor buffers."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.shifts = [torch.ones(dim), torch.zeros(dim)]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + sum(self.shifts)


def test_tensors_that_modules_merely_hold_are_planned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dasvit.spaces.cell.operations, "_FAMILIES", dict(dasvit.spaces.cell.operations._FAMILIES)
    )
    register_operation("shifted", Shifted)
    config = plan_config(operations=("identity", "msa_h2", "mlp_r3", "shifted"))
    plan = plan_stage(config, 0)
    assert plan.peak > plan.resident > 0


def test_resident_is_weights_and_two_moments() -> None:
    config = plan_config()
    plan = plan_stage(config, 0)
    names = tuple(config.operations for _ in edge_list(config.num_nodes))
    model = build_supernet(config, names, num_layers=1, in_channels=3, num_classes=100)
    weights = sum(p.numel() for p in model.parameters()) * 4
    images = 2 * 16 * 3 * config.data.image_size**2 * 4
    assert plan.resident == pytest.approx(3 * weights + images, rel=0.08)  # rounding to blocks


def test_what_must_be_more_is_more() -> None:
    base = plan_config(token_ratio=0.5)

    def peak(**changes: object) -> int:
        return max(plan.peak for plan in plan_search(replace(base, **changes)))

    assert peak() < peak(batch_size=32) < peak(batch_size=64)
    assert peak(token_ratio=0.25) < peak() < peak(token_ratio=1.0)
    assert peak() < peak(xi=0.01)
    assert peak() < peak(stage_layers=(1, 3))
    assert peak(batch_size=64, precision="bf16") < peak(batch_size=64)
    assert peak(batch_size=64, recompute=True) < 0.8 * peak(batch_size=64)
    assert peak(batch_size=64) < peak(batch_size=64, fused=False)
    assert peak(compile=True) == pytest.approx(1.2 * peak())
    # Evaluation takes its 256 images beside what a graph holds.
    images = 256 * 3 * base.data.image_size**2 * 4
    assert peak(compile=True, cuda_graph=True) > 1.44 * peak() + images
    assert peak(cuda_graph=True) > 1.2 * peak() + images


def test_later_stages_are_planned_with_the_heaviest_candidates() -> None:
    config = get_preset("cifar10").search
    assert heaviest_operations(config, 3) == ("msa_h8", "mlp_r3", "mlp_r4")
    assert heaviest_operations(config, 8) == config.operations


def test_a_plan_leaves_what_a_graph_reads() -> None:
    """Masks of the fairness loss made before a plan are those of after it."""
    edge_ops = (("identity", "msa_h2"),) * 2
    weights = torch.full((2, 2), 0.5)
    before = _mask(edge_ops, "msa", weights)
    plan_search(plan_config(stage_layers=(1,), stage_ops=(4,)))
    assert _mask(edge_ops, "msa", weights) is before
    assert before.tolist() == [[0.0, 1.0]] * 2


def test_plans_leave_nothing_behind() -> None:
    """A real step works after a plan and the other way round; random numbers go on as before."""
    config = plan_config()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    plan_stage(config, 0)
    assert torch.equal(torch.rand(2), expected)
    step = _step(config)
    step()
    plan_stage(config, 0)
    step()
    assert isinstance(nn.Linear(2, 2).weight.sum().item(), float)
