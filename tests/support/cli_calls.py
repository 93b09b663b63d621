"""Commands of the command line, called in this process."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import runs

import dasvit.search.loop
import dasvit.search.step
import dasvit.spaces.cell.operations
import dasvit.training.loop
from dasvit.cli import main

SEARCH = [
    *("search", "--device", "cpu", "--dim", "12", "--patch-size", "4", "--stage-layers", "1", "1"),
    *("--stage-ops", "8", "3", "--stage-epochs", "1", "--batch-size", "32"),
]
RETRAIN = [
    *("retrain", "--device", "cpu", "--dim", "12", "--depth", "1", "--patch-size", "4"),
    *("--epochs", "2", "--warmup-epochs", "1", "--batch-size", "32"),
]


@dataclasses.dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; digits have 128 images for training and 60 for the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # of the help
    runs.few_images(monkeypatch, dasvit.search.loop, dasvit.training.loop)
    return tmp_path


@pytest.fixture
def call(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in this process."""

    def run(*argv: str) -> Done:
        capsys.readouterr()
        code: Any = 0
        try:
            main(argv)
        except SystemExit as ended:
            code = ended.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def succeed(call: Callable[..., Done]) -> Callable[..., str]:
    """Run a command that must succeed; what it printed."""

    def run(*argv: str) -> str:
        done = call(*argv)
        assert (done.code, done.err) == (0, "")
        return done.out

    return run
