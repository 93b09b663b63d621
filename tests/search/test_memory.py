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
from dasvit.methods import DARTS, PDARTS
from dasvit.search.config import SearchConfig
from dasvit.search.memory import (
    BLOCK,
    StagePlan,
    _step,
    largest_batch,
    plan_search,
    plan_stage,
    shortfall,
    usable,
    what_fits,
)
from dasvit.search.model import build_search_model
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


# --- Plans


@pytest.mark.parametrize(
    ("changes", "xi", "token_ratio"),
    [
        ({}, 0.0, 1.0),
        ({"num_nodes": 2}, 0.01, 0.5),
        ({"recompute": True}, 0.01, 0.5),
        ({"fused": False}, 0.01, 0.5),
    ],
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
    base = plan_config(
        operations=("identity", "msa_h2", "mlp_r3"), stage_ops=(3,), stage_layers=(1,)
    )

    @cache
    def planned(**changes: object) -> int:
        (plan,) = plan_search(base.replaced(**{"batch_size": 64} | changes))
        return plan.peak

    assert planned(batch_size=16) < planned()
    assert planned(precision="bf16") < planned()
    assert planned(compile=True) == pytest.approx(1.2 * planned())
    # Evaluation takes its 256 images beside what a graph holds.
    images = 256 * 3 * base.data.image_size**2 * 4
    assert planned(compile=True, cuda_graph=True) > 1.44 * planned() + images


class Shifted(nn.Linear):
    """An operation of a user's own, with a tensor that is neither a parameter nor a buffer."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__(dim, dim)
        self.shift = [torch.ones(dim)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift[0]


def test_tensors_that_modules_merely_hold_are_planned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = dasvit.spaces.cell.operations
    monkeypatch.setattr(operations, "_FAMILIES", dict(operations._FAMILIES))
    register_operation("shifted", Shifted)
    plan = plan_stage(plan_config(operations=("identity", "msa_h2", "mlp_r3", "shifted")), 0)
    assert plan.peak > plan.resident > 0


def test_a_plan_leaves_what_a_graph_reads() -> None:
    """Masks of operation types made before a plan are those of after it."""
    candidates = Candidates(edge_ops=(("identity", "msa_h2"),) * 2, operations=("identity",))
    weights = torch.full((2, 2), 0.5)
    before = candidates.mask("msa", weights)
    plan_search(plan_config(stage_layers=(1,), stage_ops=(4,)))
    assert candidates.mask("msa", weights) is before
    assert before.tolist() == [[0.0, 1.0]] * 2


def test_dropped_skips_are_in_the_plan() -> None:
    plain, stage = plan_config(), {"stage_layers": (1,), "stage_ops": (4,), "stage_epochs": 2}
    none, some = (
        plan_stage(plain.replaced(method=PDARTS(**stage, skip_dropout=(rate,))), 0).peak
        for rate in (0.0, 0.5)
    )
    assert some > none == plan_stage(plain.replaced(method=DARTS(**stage)), 0).peak


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


@pytest.mark.parametrize(
    ("planned", "budget", "expected"),
    [
        # Not only in the stage that takes the most of a few images.
        (lambda stage, batch: (10 + 3 * batch, 200 + batch)[stage], 230, 30),
        (lambda stage, batch: (10 + 3 * batch, 200 + batch)[stage], 200, 0),
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
    config, tried = plan_config(), []
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
