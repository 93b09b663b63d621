"""Retrainings that several test files run and compare."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from support import runs
from support.runs import ENCODER
from torch import Tensor

from dasvit.report.record import load_retrain_result
from dasvit.training.loop import retrain
from dasvit.training.model_folder import RETRAIN_KIND as KIND


@pytest.fixture
def few_retrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 training images, four steps an epoch; 60 test images."""
    runs.few_images(monkeypatch)


@pytest.fixture(scope="session")
def genotype_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a genotype file."""
    path = tmp_path_factory.mktemp("genotype") / "genotype.json"
    ENCODER.save(path)
    return str(path)


def train_digits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str = "encoder", **changes: Any
) -> Path:
    """A retraining's folder: of the tiny encoder, `vit`, or a timm model."""
    runs.few_images(monkeypatch)
    if model == "encoder":
        path = folder.parent / f"{folder.name}-genotype.json"
        ENCODER.save(path)
        model = str(path)
    retrain(runs.retrain_config(**({"model": model, "epochs": 2} | changes)), folder)
    return folder


@pytest.fixture(scope="session")
def trained_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished retraining of the tiny encoder; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        return train_digits(tmp_path_factory.mktemp("trained") / "encoder", patch)


@pytest.fixture
def own(trained_encoder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(trained_encoder, tmp_path / "own"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """What a finished retraining saved."""
    return safetensors.torch.load_file(folder / "model" / "model.safetensors")


def assert_same_run(left: Path, right: Path) -> None:
    """Two finished retrainings are equal in all but wall times."""
    runs.assert_same_checkpoint(left, right, KIND)
    rows = [runs.rows_without_times(folder / "train.jsonl") for folder in (left, right)]
    assert rows[0] == rows[1]
    names = ("model/model.safetensors", "model/config.json")
    files = [[(folder / name).read_bytes() for name in names] for folder in (left, right)]
    assert files[0] == files[1]
    results = [load_retrain_result(folder / "result.json") for folder in (left, right)]
    measured = {"seconds": 0, "peak_memory_bytes": None, "latency_seconds": None}
    left_result, right_result = (replace(r, **measured) for r in results)
    assert left_result == right_result
