"""A sweep plans the memory of the most that it may draw."""

import pytest
import torch

from dasvit.search.config import SearchConfig
from tune.demand import Demand
from tune.options import parse_options
from tune.phases import memory_warning

SMALL = "--stage-layers 1 1 1 --batch-size 8"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SearchConfig, int]]:
    """What is planned against how many bytes, on a machine with a GPU of 1000 bytes."""
    calls: list[tuple[SearchConfig, int]] = []

    def shortfall(config: SearchConfig, available: int, progress: object) -> str:
        calls.append((config, available))
        return "too much"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("tune.phases.device_memory", lambda device: 1000)
    monkeypatch.setattr("tune.phases.shortfall", shortfall)
    return calls


def _need(gpus: float) -> Demand:
    return Demand(cpus=1, gpus=gpus, concurrent=1)


def test_the_most_that_is_drawn(planned: list) -> None:
    options = parse_options(SMALL.split())
    assert memory_warning(options, _need(1.0)) == "too much"
    assert planned == [
        (options.plan.search.replaced(token_ratio=1.0, xi=options.plan.search.weight_lr), 1000)
    ]


def test_fixed_settings_are_planned_as_they_are(planned: list) -> None:
    options = parse_options([*SMALL.split(), "--token-ratio", "0.5", "--xi", "0"])
    assert memory_warning(options, _need(0.25)) == "too much"
    assert planned == [(options.plan.search, 250)]
    assert options.plan.search.method.token_ratio == 0.5


def test_no_gpu_no_plan(planned: list, monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse_options(SMALL.split())
    assert memory_warning(options, _need(0.0)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory_warning(options, _need(1.0)) is None
    assert planned == []
