"""Searches that are killed at any moment and resumed: the same to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from support import runs
from support.runs import CrashError, search_config
from support.search_runs import Searched, assert_same_run, run

import dasvit.search.loop
import dasvit.search.step
from dasvit.cli import main
from dasvit.report.events import SearchEpoch, SearchResult, StageEnd
from dasvit.report.record import load_search_result, read_trace
from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint
from dasvit.search.architect import weight_gradient
from dasvit.search.config import SearchConfig
from dasvit.search.loop import KIND, load_search_config, search

ROOT = Path(__file__).parents[2]


def crash_before_checkpoint(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """The epoch is computed and reported, its checkpoint is not written."""
    patch.setattr(CheckpointWriter, "save", Mock(side_effect=CrashError))


def crash_while_saving(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """The new checkpoint is written but has not got its name yet."""
    move = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if Path(target).name == "checkpoint.pt":
            raise CrashError
        return move(self, target)

    patch.setattr(Path, "replace", crash)


def crash_within_epoch(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Alphas of the second step are updated, its weights are not."""
    calls = iter([weight_gradient])

    def gradient(*args: Any) -> Any:
        compute = next(calls, None)
        if compute is None:
            raise CrashError
        return compute(*args)

    patch.setattr(dasvit.search.step, "weight_gradient", gradient)


def epochs_saved(folder: Path) -> int:
    path = folder / "checkpoint.pt"
    return load_checkpoint(path, KIND)["epoch"] if path.exists() else 0


CRASHES = [crash_before_checkpoint, crash_while_saving, crash_within_epoch]
SETTINGS = {"xi": 0.05, "dropout": 0.2, "token_where": "edge", "num_nodes": 1}


@pytest.mark.usefixtures("few_searched")
def test_killed_in_every_epoch_and_resumed(
    searched_once: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its checkpoint, then right after it; stages have two epochs, so that each way to crash
    meets a first one and a last one."""
    config = search_config(**SETTINGS)
    for epoch in range(config.total_epochs):
        for crash in (CRASHES[epoch % 3], runs.crash_after_saving):
            with monkeypatch.context() as patch:
                crash(patch, epoch)
                with pytest.raises(CrashError):
                    search(config, tmp_path, resume=True)
            assert epochs_saved(tmp_path) == epoch + (crash is runs.crash_after_saving)
            torch.rand(epoch + 1)  # another process has another random state
    result = run(config, tmp_path, resume=True).result
    assert_same_run(tmp_path, searched_once(**SETTINGS).folder)
    rows = read_trace(tmp_path / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.total_epochs))
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert not list(tmp_path.glob(".*"))  # no temporary file stays


@pytest.mark.usefixtures("few_searched")
def test_killed_between_sparse_checkpoints_and_resumed(
    searched_once: Searched, tmp_path: Path
) -> None:
    """Of stages of 3 epochs: checkpoints after the 2nd, the 3rd (a stage's last), the 4th, ..."""
    settings = {"stage_epochs": 3, "checkpoint_epochs": 2, "stage_layers": (1, 1)}
    settings["stage_ops"] = (8, 4)
    config = search_config(**settings)
    for epoch, kept in enumerate([0, 0, 2, 3, 4, 4]):  # what is saved when an epoch is over
        with pytest.raises(CrashError):
            run_until(tmp_path, epoch, config)
        assert epochs_saved(tmp_path) == kept
    search(config, tmp_path, resume=True)
    assert_same_run(tmp_path, searched_once(**settings).folder)


@pytest.mark.usefixtures("few_searched")
@pytest.mark.parametrize("moment", ["stage's end", "before the result", "result"])
def test_killed_at_the_end_of_a_stage_or_of_the_run(
    moment: str, searched_once: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"stage's end": StageEnd, "result": SearchResult}.get(moment, type(None))
    report = runs.crash_at(lambda event: isinstance(event, kind))
    with monkeypatch.context() as patch:
        if moment == "before the result":  # the genotype is there
            patch.setattr(dasvit.search.loop, "save_result", Mock(side_effect=CrashError))
        with pytest.raises(CrashError):
            search(search_config(), tmp_path, report=report)
    assert (tmp_path / "result.json").exists() == (moment == "result")
    again = run(search_config(), tmp_path, resume=True)
    assert_same_run(tmp_path, searched_once().folder)
    # A result on disk marks the end: nothing is computed again.
    first = {"stage's end": [StageEnd], "before the result": [StageEnd], "result": []}[moment]
    assert [type(e) for e in again.events][:1] == first
    assert again.result == load_search_result(tmp_path / "result.json")


@pytest.mark.usefixtures("few_searched")
def test_begun_by_a_version_with_fewer_settings_and_resumed(
    searched_once: Searched, tmp_path: Path
) -> None:
    with pytest.raises(CrashError):
        run_until(tmp_path, 1, search_config())
    path = tmp_path / "config.json"
    now = path.read_text()
    before = json.loads(now)
    for part, name in (("", "compile"), ("data", "num_workers"), ("method", "inherit_weights")):
        del (before["config"][part] if part else before["config"])[name]
    path.write_text(json.dumps(before))
    search(search_config(), tmp_path, resume=True)
    assert_same_run(tmp_path, searched_once().folder)
    assert path.read_text() == now


@pytest.mark.timeout(900)  # processes that start: seconds, minutes on a busy machine
def test_sigkill_within_an_epoch_and_resume_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real process on the full digits; it is continued in this one."""
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, "-m", "dasvit", "search", "--device", "cpu", "--out", str(folder)),
        *("--operations", "identity", "msa_h2", "mlp_r0.5", "--num-nodes", "1", "--dim", "12"),
        *("--stage-layers", "1", "2", "--stage-ops", "3", "2", "--stage-epochs", "3"),
        *("--patch-size", "4", "--augment", "none", "--dropout", "0.1", "--alpha-lr", "3e-2"),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    trace = folder / "alpha.jsonl"
    try:
        while not ((folder / "checkpoint.pt").exists() and trace.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    torch.set_num_threads(2)  # it takes as many threads as the killed one had
    main(["search", "--resume", str(folder), "--device", "cpu"])
    out = capsys.readouterr().out
    assert "epoch 1/6" not in out
    assert "epoch 6/6" in out
    config = load_search_config(folder)
    assert (config.space.num_nodes, config.space.dropout) == (1, 0.1)
    search(config, expected)
    assert_same_run(folder, expected)


def test_other_images_are_not_continued_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs.few_images(monkeypatch, dasvit.search.loop)
    with pytest.raises(CrashError):
        run_until(tmp_path, 1, search_config())
    runs.few_images(monkeypatch, dasvit.search.loop, train=120)
    with pytest.raises(ValueError, match=r"other images .*: 128.* there, .*: 120.* now"):
        search(search_config(), tmp_path, resume=True)
    runs.few_images(monkeypatch, dasvit.search.loop)
    assert search(search_config(), tmp_path, resume=True).genotype


def run_until(folder: Path, epoch: int, config: SearchConfig) -> None:
    """A search that ends without a word when an epoch is over, before its checkpoint."""
    report = runs.crash_at(lambda event: isinstance(event, SearchEpoch) and event.epoch == epoch)
    search(config, folder, report=report, resume=True)
