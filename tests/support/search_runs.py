"""Searches that several test files run, watch and compare."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import search_config

import dasvit.search.loop
import dasvit.search.step
from dasvit.report.events import Event, SearchEpoch, SearchResult, StageEnd
from dasvit.report.record import load_search_result
from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint
from dasvit.search.config import SearchConfig
from dasvit.search.loop import KIND, search
from dasvit.search.model import SearchModel, build_model
from dasvit.spaces.cell.fused import FusedCell

VARIANTS: dict[str, dict[str, Any]] = {
    "first order": {},
    "second order, dropout": {"xi": 0.05, "dropout": 0.2, "token_where": "edge"},
}


@pytest.fixture
def few_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 training images, two steps an epoch."""
    runs.few_images(monkeypatch, dasvit.search.loop)


@pytest.fixture
def checkpoints_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of a stage's last epoch is in its file when the stage's end is reported."""
    save = CheckpointWriter.save

    def save_and_wait(self: CheckpointWriter, state: dict[str, Any]) -> None:
        save(self, state)
        self.wait()

    monkeypatch.setattr(CheckpointWriter, "save", save_and_wait)


@pytest.fixture(scope="session")
def whole_search(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant's search that was never interrupted."""
    folders: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in folders:
            folders[variant] = tmp_path_factory.mktemp("whole")
            search(search_config(**VARIANTS[variant]), folders[variant])
        return folders[variant]

    return get


def run(config: SearchConfig, folder: Path, **options: Any) -> tuple[SearchResult, list[Event]]:
    """A search and all that it reported."""
    events: list[Event] = []
    result = search(config, folder, report=events.append, **options)
    return result, events


def epochs(events: list[Event]) -> list[SearchEpoch]:
    return [e for e in events if isinstance(e, SearchEpoch)]


def stage_ends(events: list[Event]) -> list[StageEnd]:
    return [e for e in events if isinstance(e, StageEnd)]


def searched(config: SearchConfig, folder: Path) -> SearchModel:
    """The model in a folder's checkpoint."""
    state = load_checkpoint(folder / "checkpoint.pt", KIND)
    model = build_model(
        config,
        tuple(tuple(names) for names in state["edge_ops"]),
        num_layers=config.stages[state["stage"]].num_layers,
        in_channels=1,
        num_classes=10,
    )
    model.load_state_dict(state["model"])
    return model


def literal_state(model: SearchModel) -> dict[str, torch.Tensor]:
    """The model's state with every candidate under its own name."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("supernet.cells.")}
    for layer, cell in enumerate(model.supernet.cells):
        assert isinstance(cell, FusedCell)
        values = cell.unfused().state_dict()
        state |= {f"supernet.cells.{layer}.{name}": value for name, value in values.items()}
    return state


def assert_same_run(left: Path, right: Path) -> None:
    """Two finished searches are equal in all but wall times."""
    runs.assert_same_checkpoint(left, right, KIND)
    assert runs.rows_without_times(left / "alpha.jsonl") == runs.rows_without_times(
        right / "alpha.jsonl"
    )
    assert (left / "genotype.json").read_bytes() == (right / "genotype.json").read_bytes()
    results = [load_search_result(folder / "result.json") for folder in (left, right)]
    assert replace(results[0], seconds=0) == replace(results[1], seconds=0)
    assert results[0].genotype.provenance == results[1].genotype.provenance
