"""Tiny searches and retrainings that several test files run."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import dasvit.training.loop
from dasvit.data.config import DataConfig
from dasvit.data.datasets import ImageData, load_data
from dasvit.presets import get_preset
from dasvit.report.record import read_trace
from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint
from dasvit.search.config import SearchConfig
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.training.config import RetrainConfig

OPERATIONS = (
    "zero",
    "identity",
    "msa_h2",
    "msa_h3",
    "msa_h4",
    "mlp_r0.5",
    "mlp_r3",
    "mlp_r4",
)
DIGITS = DataConfig(dataset="digits", image_size=8, augment="none")
ENCODER = Genotype(
    ((Edge(0, "msa_h2"), Edge(1, "mlp_r0.5")), (Edge(1, "identity"), Edge(2, "mlp_r2")))
)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Every file written meanwhile ends at this many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def search_config(**changes: Any) -> SearchConfig:
    """All 8 candidates, three stages of two epochs, width 12, 4 patches an image."""
    values: dict[str, Any] = {
        "data": DIGITS,
        "operations": OPERATIONS,
        "dim": 12,
        "patch_size": 4,
        "stage_layers": (1, 1, 2),
        "stage_epochs": 2,
        "batch_size": 32,
        "weight_lr": 3e-3,
        "alpha_lr": 3e-2,
    }
    return get_preset("cifar10").search.replaced(**(values | changes))


def retrain_config(**changes: Any) -> RetrainConfig:
    """A plain ViT of one layer, three epochs of which one warms up."""
    values: dict[str, Any] = {
        "data": DIGITS,
        "model": "vit",
        "dim": 12,
        "depth": 1,
        "patch_size": 4,
        "vit_heads": 3,
        "epochs": 3,
        "warmup_epochs": 1,
        "batch_size": 32,
        "lr": 3e-3,
    }
    return replace(get_preset("cifar10").retrain, **(values | changes))


def few_images(
    monkeypatch: pytest.MonkeyPatch, *modules: ModuleType, train: int = 128, test: int = 60
) -> None:
    """The loops in `modules` and `evaluate` see the first images of each split only."""

    def load(config: DataConfig, device: torch.device) -> ImageData:
        data = load_data(config, device)
        return replace(
            data,
            train=data.train.subset(torch.arange(train)),
            test=data.test.subset(torch.arange(test)),
        )

    for module in (*modules, dasvit.training.loop):
        monkeypatch.setattr(module, "load_data", load)


class CrashError(Exception):
    """The power is gone."""


def crash_at(moment: Callable[[Any], bool]) -> Callable[[Any], None]:
    """A report that ends the process at an event."""

    def report(event: Any) -> None:
        if moment(event):
            raise CrashError

    return report


def save_checkpoint(path: Path, kind: str, state: dict[str, Any]) -> None:
    """One, and wait for it."""
    with CheckpointWriter(path, kind) as checkpoints:
        checkpoints.save(state)


def crash_after_saving(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """A run ends right after the checkpoint of an epoch is written."""
    save = CheckpointWriter.save

    def save_and_crash(self: CheckpointWriter, state: dict[str, Any]) -> None:
        save(self, state)
        if state["epoch"] == epoch + 1:
            self.wait()
            raise CrashError

    monkeypatch.setattr(CheckpointWriter, "save", save_and_crash)


def rows_without_times(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's trace but for their wall times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_trace(path)]


def assert_same_state(left: Any, right: Any, where: str = "") -> None:
    """Nested values are equal, tensors bit for bit; wall times aside."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            if key != "seconds":
                assert_same_state(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same_state(a, b, f"{where}/{i}")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    else:
        assert left == right, where


def assert_same_checkpoint(left: Path, right: Path, kind: str) -> None:
    """Weights, alphas, optimisers, generators and position of two runs, bit for bit."""
    assert_same_state(
        load_checkpoint(left / "checkpoint.pt", kind),
        load_checkpoint(right / "checkpoint.pt", kind),
    )


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file under a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
