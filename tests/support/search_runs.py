"""Tiny searches that the tests run, watch and compare, and the models that they train."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import search_config
from torch import Tensor

import dasvit.search.loop
from dasvit.data.batch import Batch
from dasvit.report.events import Event, SearchEpoch, SearchResult, StageEnd
from dasvit.report.record import load_search_result
from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint
from dasvit.search.config import SearchConfig
from dasvit.search.loop import KIND, search
from dasvit.search.model import SearchModel, build_search_model
from dasvit.search.step import BilevelStep, Found
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.fused_edges import FusedCell

SIX = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")
"""Operations that fit a width of 8."""


def model_config(**changes: Any) -> SearchConfig:
    """Of `make_model`: width 8, both sides of the fairness bounds matter, learning rates so large
    that a few steps show."""
    values: dict[str, Any] = {
        "operations": SIX,
        "stage_layers": (2,),
        "stage_ops": (6,),
        "dim": 8,
        "fused": False,
        "token_ratio": 1.0,
        "alpha_init_std": 1.0,
        "alpha_lr": 0.05,
        "skip_weight": 0.7,
        "type_weight": 1.3,
        "gamma_min": 0.3,
        "gamma_max": 0.35,
        "zeta1": 2.0,
        "zeta2": 3.0,
    }
    return search_config(**values | changes)


def make_model(
    config: SearchConfig, edge_ops: EdgeOps | None = None, *, num_classes: int = 3
) -> SearchModel:
    """A stage's model of two layers on grey images, random in all parameters: no bias is zero and
    no gain is one. The weights of MSA lie above the fairness bounds, those of MLP below."""
    layers = config.stages[0].num_layers
    model = build_search_model(
        config, edge_ops, num_layers=layers, in_channels=1, num_classes=num_classes
    )
    with torch.no_grad():
        for p in model.weight_parameters():
            p.add_(0.2 * torch.randn_like(p))
        for p in model.arch_parameters():
            names = model.candidates.edge_ops[0]
            if p.shape[1] > 1:
                p.add_(torch.tensor([2.0 * name.startswith("msa") for name in names]))
    return model


def make_batch(size: int = 4, *, num_classes: int = 3, side: int = 8) -> Batch:
    """Random grey images and labels, in the default dtype."""
    return torch.randn(size, 1, side, side), torch.randint(num_classes, (size,))


# --- Searches


@dataclass
class Step:
    """What one step of a search was given, and the random state that it began with."""

    stage: int
    train: Batch
    val: Batch | None
    weight_lr: float
    t: float
    draws: Tensor


@dataclass
class Run:
    """A finished search and all that was seen of it.

    Attributes:
        events: as reported.
        steps: in their order.
        stages: the model at the end of each stage, from its checkpoint.
    """

    config: SearchConfig
    folder: Path
    result: SearchResult
    events: list[Event]
    steps: list[Step] = field(default_factory=list)
    stages: list[SearchModel] = field(default_factory=list)

    @property
    def epochs(self) -> list[SearchEpoch]:
        return [e for e in self.events if isinstance(e, SearchEpoch)]

    @property
    def ends(self) -> list[StageEnd]:
        return [e for e in self.events if isinstance(e, StageEnd)]

    @property
    def state(self) -> dict[str, Any]:
        """The last checkpoint."""
        return load_checkpoint(self.folder / "checkpoint.pt", KIND)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """128 training images, two steps per epoch, and no check before, which would take longer."""
    runs.few_images(patch, dasvit.search.loop)
    patch.setattr(dasvit.search.loop, "check_search", lambda config: None)


def run(config: SearchConfig, folder: Path, **options: Any) -> Run:
    """A search and all that it reported."""
    events: list[Event] = []
    result = search(config, folder, report=events.append, **options)
    return Run(config, folder, result, events)


def watched(config: SearchConfig, folder: Path, **options: Any) -> Run:
    """The same; every step and every stage's end is kept."""
    steps: list[Step] = []
    stages: list[SearchModel] = []
    events: list[Event] = []

    class Watched(BilevelStep):
        def __call__(self, train: Batch, val: Batch | None, **options: float) -> Found:
            draws = torch.get_rng_state()
            step = Step(len(stages), train, val, options["weight_lr"], options["t"], draws)
            steps.append(step)
            return super().__call__(train, val, **options)

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, StageEnd):
            stages.append(searched(config, folder))

    with pytest.MonkeyPatch.context() as patch, checkpoints_at_once():
        patch.setattr(dasvit.search.loop, "BilevelStep", Watched)
        result = search(config, folder, report=report, **options)
    return Run(config, folder, result, events, steps, stages)


@contextmanager
def checkpoints_at_once() -> Iterator[None]:
    """Each is in its file before the search goes on."""
    save = CheckpointWriter.save

    def save_and_wait(self: CheckpointWriter, state: dict[str, Any]) -> None:
        save(self, state)
        self.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", save_and_wait)
        yield


def searched(config: SearchConfig, folder: Path) -> SearchModel:
    """The model in a folder's checkpoint."""
    state = load_checkpoint(folder / "checkpoint.pt", KIND)
    with torch.random.fork_rng(devices=[]):
        model = build_search_model(
            config,
            tuple(tuple(names) for names in state["edge_ops"]),
            num_layers=config.stages[state["stage"]].num_layers,
            in_channels=1,
            num_classes=10,
        )
    model.load_state_dict(state["model"])
    model.t.fill_(state["epoch"] / config.total_epochs)
    return model


def literal_state(model: SearchModel) -> dict[str, Tensor]:
    """The weights of a model's supernet, with every candidate under its own name."""
    supernet = model.supernet
    state = {k: v for k, v in supernet.state_dict().items() if not k.startswith("cells.")}
    for layer, cell in enumerate(supernet.cells):
        literal = cell.unfused() if isinstance(cell, FusedCell) else cell
        state |= {f"cells.{layer}.{name}": v for name, v in literal.state_dict().items()}
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


Searched = Callable[..., Run]
"""`searched_once(**settings)`: one run per settings and session."""
