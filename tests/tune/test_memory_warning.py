"""A sweep plans the memory of the most that it may draw."""

import pytest
import torch

from dasvit.search.config import SearchConfig
from tune.demand import Demand
from tune.options import parse_options
from tune.phases import memory_warning


def test_memory_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU of 1000 bytes."""
    planned: list[tuple[SearchConfig, int]] = []

    def shortfall(config: SearchConfig, available: int, progress: object) -> str:
        planned.append((config, available))
        return "too much"

    def warning(argv: str, gpus: float) -> tuple[SearchConfig, str | None]:
        options = parse_options(argv.split())
        need = Demand(cpus=1, gpus=gpus, concurrent=1)
        return options.plan.search, memory_warning(options, need)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("tune.phases.device_memory", lambda device: 1000)
    monkeypatch.setattr("tune.phases.shortfall", shortfall)
    drawn, text = warning("--batch-size 8", 1.0)
    fixed, _ = warning("--batch-size 8 --token-ratio 0.5 --xi 0", 0.25)
    assert text == "too much"
    most = drawn.replaced(token_ratio=1.0, xi=drawn.weight_lr)
    assert planned == [(most, 1000), (fixed, 250)]
    assert warning("", 0.0)[1] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert warning("", 1.0)[1] is None
