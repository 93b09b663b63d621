"""Retrainings that several test files run and compare."""

from dataclasses import replace
from pathlib import Path

import pytest
from support import runs
from support.runs import ENCODER

from dasvit.report.record import load_retrain_result
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


def assert_same_run(left: Path, right: Path) -> None:
    """Two finished retrainings are equal in all but wall times."""
    runs.assert_same_checkpoint(left, right, KIND)
    assert runs.rows_without_times(left / "train.jsonl") == runs.rows_without_times(
        right / "train.jsonl"
    )
    files = [(folder / "model" / "model.safetensors").read_bytes() for folder in (left, right)]
    assert files[0] == files[1]
    results = [load_retrain_result(folder / "result.json") for folder in (left, right)]
    left_result, right_result = (replace(r, seconds=0, peak_memory_bytes=None) for r in results)
    assert left_result == right_result
