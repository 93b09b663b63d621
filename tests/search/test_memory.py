"""Planned memory against executed memory, the largest batch, and warnings before a search."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from support.runs import DIGITS, search_config
from torch import Tensor, nn

import dasvit.search.memory
import dasvit.spaces.cell.operations
from dasvit.costs import LiveMemory
from dasvit.data.config import DataConfig
from dasvit.data.datasets import load_data
from dasvit.search.config import SearchConfig
from dasvit.search.memory import (
    BLOCK,
    StagePlan,
    _step,
    _without_values,
    largest_batch,
    peak_of,
    plan_search,
    plan_stage,
    shortfall,
    usable,
    what_fits,
)
from dasvit.search.model import build_search_model
from dasvit.spaces import CellSpace
from dasvit.spaces.cell.candidates import Candidates
from dasvit.spaces.cell.operations import register_operation


def plan_config(**changes: object) -> SearchConfig:
    """Wide enough that activations outweigh what every memory is rounded up by."""
    values = {
        "operations": ("identity", "msa_h2", "mlp_r0.5", "mlp_r3"),
        "dim": 48,
        "num_nodes": 1,
        "batch_size": 16,
        "stage_layers": (1, 2),
        "stage_ops": (4, 2),
    }
    return search_config(**values | changes)


ONE_STAGE = {"stage_layers": (1,), "stage_ops": (4,)}


def peak(config: SearchConfig) -> int:
    return max(plan.peak for plan in plan_search(config))


# --- Plans


@pytest.mark.parametrize(("xi", "token_ratio"), [(0.0, 1.0), (0.01, 0.5)])
@pytest.mark.parametrize(
    "changes", [{}, {"num_nodes": 2}, {"recompute": True}, {"fused": False}], ids=str
)
def test_a_plan_is_what_a_real_step_takes(changes: dict, xi: float, token_ratio: float) -> None:
    """And a plan leaves nothing behind that the step would meet."""
    config = plan_config(xi=xi, token_ratio=token_ratio, **changes)
    state = torch.get_rng_state()
    planned = plan_stage(config, 0)
    assert torch.equal(torch.get_rng_state(), state)
    with LiveMemory(BLOCK) as memory:
        model = build_search_model(config, num_layers=1, in_channels=3, num_classes=100)
        step = _step(config, model)
        step()
        resident = memory.peak = memory.live
        step()
        executed = memory.peak
    assert planned.resident == pytest.approx(resident, rel=0.01)
    assert planned.peak == pytest.approx(executed, rel=0.01)
    # Weights, two moments of each, and two batches; the rest is rounding to blocks.
    weights = sum(p.numel() for p in model.parameters())
    images = 2 * 16 * 3 * config.data.image_size**2
    assert planned.resident == pytest.approx(4 * (3 * weights + images), rel=0.15)


def test_what_must_be_more_is_more() -> None:
    operations = ("identity", "msa_h2", "mlp_r3")
    base = plan_config(operations=operations, stage_layers=(1,), stage_ops=(3,), token_ratio=0.5)

    @cache
    def planned(**changes: object) -> int:
        return peak(base.replaced(batch_size=64, **changes))

    assert peak(base) < planned() < planned(token_ratio=1.0)
    assert planned() < planned(xi=0.01)
    assert planned() < planned(stage_layers=(2,))
    assert planned(precision="bf16") < planned()
    assert planned(recompute=True) < 0.95 * planned() < 0.95 * planned(fused=False)
    assert planned(compile=True) == pytest.approx(1.2 * planned())
    # Evaluation takes its 256 images beside what a graph holds.
    images = 256 * 3 * base.data.image_size**2 * 4
    assert planned(compile=True, cuda_graph=True) > 1.44 * planned() + images


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
    operations = dasvit.spaces.cell.operations
    monkeypatch.setattr(operations, "_FAMILIES", dict(operations._FAMILIES))
    register_operation("shifted", Shifted)
    plan = plan_stage(plan_config(operations=("identity", "msa_h2", "mlp_r3", "shifted")), 0)
    assert plan.peak > plan.resident > 0


def test_later_stages_are_planned_with_the_heaviest_candidates() -> None:
    space = CellSpace()
    assert space.heaviest(3) == (("msa_h8", "mlp_r3", "mlp_r4"),) * 5
    assert space.heaviest(8) == (space.operations,) * 5


def test_a_plan_leaves_what_a_graph_reads() -> None:
    """Masks of operation types made before a plan are those of after it."""
    candidates = Candidates(edge_ops=(("identity", "msa_h2"),) * 2, operations=("identity",))
    weights = torch.full((2, 2), 0.5)
    before = candidates.mask("msa", weights)
    plan_search(plan_config(**ONE_STAGE))
    assert candidates.mask("msa", weights) is before
    assert before.tolist() == [[0.0, 1.0]] * 2


# --- The largest batch


Planned = Callable[[int, int], int]


@pytest.fixture
def plan_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Planned], list[int]]:
    """Plans are given by a function of stage and batch; the batches that were planned."""

    def patch(function: Planned) -> list[int]:
        batches: list[int] = []

        def plan(config: SearchConfig, stage: int) -> StagePlan:
            batches.append(config.batch_size)
            return StagePlan(stage=stage, resident=0, peak=function(stage, config.batch_size))

        monkeypatch.setattr(dasvit.search.memory, "plan_stage", plan)
        return batches

    return patch


def two_lines(stage: int, batch: int) -> int:
    return (10 + 3 * batch, 200 + batch)[stage]


@pytest.mark.parametrize(
    ("planned", "budget", "expected"),
    [
        # Not only in the stage that takes the most of a few images.
        *((two_lines, 340, 110), (two_lines, 230, 30), (two_lines, 201, 1), (two_lines, 200, 0)),
        # Another moment becomes the peak: the stage that seemed to allow more allows fewer.
        (lambda stage, batch: (10 + 3 * batch, max(200 + batch, 9 * batch))[stage], 340, 37),
        # An operation may choose another way from some batch size on, and plans may fall again.
        (lambda stage, batch: (3 * batch, batch + 50 * (batch == 20))[stage], 60, 19),
        (lambda stage, batch: batch, 10**40, 2**20),
    ],
)
def test_the_largest_batch_fits_in_every_stage(
    planned: Planned, budget: int, expected: int, plan_as: Callable
) -> None:
    plan_as(planned)
    assert largest_batch(plan_config(), budget) == expected


def test_the_largest_batch_is_found_along_kinks(plan_as: Callable) -> None:
    """A few images may all lie on the floor of weights and optimisers, where an image adds nearly
    nothing."""
    config = plan_config()
    for seed in range(200):
        draw = random.Random(seed)
        slopes = [draw.choice([1, 10, 100]) * draw.random() for _ in range(6)]
        lines = [(draw.uniform(0, 1e4), slope) for slope in slopes]

        def planned(stage: int, batch: int, lines: list = lines) -> int:
            return round(max(f + s * batch for f, s in lines[3 * stage : 3 * stage + 3])) + batch

        batches = plan_as(planned)
        answer = draw.choice([1, 20, 33, 34, 200, 5000])
        budget = max(planned(stage, answer) for stage in range(2))
        found = largest_batch(config, budget)
        assert all(planned(stage, found) <= budget for stage in range(2)), seed
        assert any(planned(stage, found + 1) > budget for stage in range(2)), seed
        assert len(batches) < 40, seed


def test_no_batch_of_more_images_than_there_are(plan_as: Callable) -> None:
    """Of 1,437 digits 30 % are alpha's."""
    plan_as(lambda stage, batch: batch)
    train = len(load_data(DIGITS, torch.device("cpu")).train)
    config = plan_config(val_fraction=0.3)
    images = train - round(0.3 * train)
    assert set(dict(what_fits(config, 10**9)).values()) == {images}
    assert set(dict(what_fits(config, usable(600))).values()) < set(range(1, images))
    for budget, most, expected in ((20, 7, 7), (1, 1, 1), (0, 1, 0)):
        assert largest_batch(config, budget, most=most) == expected
    folder = replace(config, data=DataConfig(dataset="folder", data_dir="x", image_size=8))
    assert set(dict(what_fits(folder, 10**9)).values()) == {2**20}


# --- What would fit


def test_what_is_tried_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan_config(**ONE_STAGE)
    tried: list[SearchConfig] = []
    monkeypatch.setattr(
        dasvit.search.memory, "largest_batch", lambda config, *_: tried.append(config) or len(tried)
    )
    literal = dict(what_fits(config.replaced(fused=False), 2**24))
    assert literal == {"": 1, "--precision bf16": 2, "--precision bf16 --recompute --fused": 3}
    assert tried[2] == config.replaced(precision="bf16", recompute=True)
    assert list(dict(what_fits(plan_config(dropout=0.1), 2**24))) == ["", "--precision bf16"]


def test_a_warning_only_where_it_does_not_fit(plan_as: Callable) -> None:
    """What is recommended is not warned against, though by the plan alone the batch could be
    larger: a GPU keeps 1 GiB to itself, a small one a sixteenth."""
    assert [usable(size * 2**20) for size in (24 * 2**10, 16)] == [23 * 2**30, 15 * 2**20]
    plan_as(lambda stage, batch: 2**30 + batch * 2**26)
    memory = 24 * 2**30
    config = plan_config(data=DataConfig(dataset="cifar10", image_size=96))
    batch = dict(what_fits(config, memory))[""]
    assert 0 < batch < largest_batch(config, memory)
    assert shortfall(replace(config, batch_size=batch), memory) is None
    said: list[str] = []
    warning = shortfall(replace(config, batch_size=batch + 1), memory, said.append)
    assert warning is not None
    assert warning.startswith(f"{said[0]}; what would fit: --batch-size {batch}, or ")
    assert len(said) == 4  # before minutes of planning, and while they pass
    assert "--recompute" in warning
    assert str(shortfall(config, 1000)).endswith("no batch at all")
