"""Networks trained for a moment on a few digits, each in its folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support import runs

from dasvit.training.loop import retrain


def train_digits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str = "encoder", **changes: Any
) -> Path:
    """A retraining's folder: of the tiny encoder, `vit`, or a timm model."""
    runs.few_images(monkeypatch)
    if model == "encoder":
        path = folder.parent / f"{folder.name}-genotype.json"
        runs.ENCODER.save(path)
        model = str(path)
    values = {"model": model, "epochs": 2} | changes
    retrain(runs.retrain_config(**values), folder)
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
