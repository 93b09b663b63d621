"""Retrainings that are killed at any moment and resumed: the same to the bit."""

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.retrain_runs import assert_same_run
from support.runs import DIGITS, CrashError, retrain_config

import dasvit.training.loop
from dasvit.presets import modern
from dasvit.report.events import Event, RetrainEpoch, RetrainResult
from dasvit.report.record import read_trace
from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint
from dasvit.training.loop import retrain
from dasvit.training.model_folder import RETRAIN_KIND as KIND
from dasvit.training.model_folder import load_retrain_config

ROOT = Path(__file__).parents[2]


def crash_in(epoch: int) -> Any:
    return runs.crash_at(lambda event: isinstance(event, RetrainEpoch) and event.epoch == epoch)


@pytest.mark.usefixtures("few_retrained")
@pytest.mark.parametrize("model", ["encoder", "test_resnet"])
def test_killed_in_every_epoch_and_resumed(
    model: str, genotype_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each checkpoint, with all that draws; `test_resnet` has running
    statistics."""
    moving = {"data": replace(DIGITS, augment="crop_flip"), "grad_clip": 1.0}
    config = retrain_config(model=model, label_smoothing=0.1, **moving)
    if model == "encoder":
        changes = {"epochs": 3, "warmup_epochs": 1, "warmup_lr": 1e-7, "accumulate": 2}
        config = replace(modern(config), model=genotype_path, dropout=0.2, **changes)
        assert config.mixup and config.ema_decay and config.drop_path
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    retrain(config, expected)
    for epoch in range(config.epochs):
        with pytest.raises(CrashError):
            retrain(config, folder, report=crash_in(epoch), resume=True)
        torch.rand(epoch + 1)  # another process has another random state
        with monkeypatch.context() as patch:
            runs.crash_after_saving(patch, epoch)
            with pytest.raises(CrashError):
                retrain(config, folder, resume=True)
        assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == epoch + 1
        assert not (folder / "model").exists()
    result = retrain(config, folder, resume=True)
    assert_same_run(folder, expected)
    rows = read_trace(folder / "train.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.epochs))
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows))


@pytest.mark.usefixtures("few_retrained")
def test_sparse_checkpoints_lost_files_and_no_result(
    genotype_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The genotype file goes, a half-written checkpoint stays, and the end comes after training."""
    path, folder = tmp_path / "found.json", tmp_path / "killed"
    path.write_bytes(Path(genotype_path).read_bytes())
    config = retrain_config(model=str(path), checkpoint_epochs=2)
    retrain(config, tmp_path / "whole")
    left, check = folder / ".checkpoint.pt.1.tmp", dasvit.training.loop.check_free_space

    def free(folder: Path, needed: int) -> None:
        assert not left.exists()  # it does not take the room of the next
        check(folder, needed)

    monkeypatch.setattr(dasvit.training.loop, "check_free_space", free)
    for epoch, kept in [(0, None), (1, None), (2, 2)]:
        with pytest.raises(CrashError):
            retrain(config, folder, report=crash_in(epoch), resume=True)
        assert (folder / "checkpoint.pt").exists() == (kept is not None)
        if kept is not None:
            assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == kept
        left.write_bytes(b"half")
        path.unlink(missing_ok=True)

    def crash(path: Path, result: RetrainResult) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(dasvit.training.loop, "save_result", crash)
        with pytest.raises(CrashError):
            retrain(config, folder, resume=True)
    events: list[Event] = []
    retrain(config, folder, resume=True, report=events.append)
    assert [type(e) for e in events] == [RetrainResult]
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.timeout(900)  # processes that start: seconds, minutes on a busy machine
def test_sigkill_within_an_epoch(tmp_path: Path) -> None:
    """A real process on the full digits; resumed in this one."""
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, "-m", "dasvit", "retrain", "--device", "cpu"),
        *("--model", "vit", "--dim", "12", "--depth", "1", "--patch-size", "4"),
        *("--epochs", "8", "--warmup-epochs", "1", "--batch-size", "32", "--lr", "3e-3"),
        *("--dropout", "0.1", "--grad-clip", "0", "--augment", "none", "--out", str(folder)),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    trace, deadline = folder / "train.jsonl", time.monotonic() + 400
    try:
        while not (trace.exists() and trace.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    config = load_retrain_config(folder)
    assert (config.epochs, config.batch_size, config.dropout) == (8, 32, 0.1)
    for each, resume in ((folder, True), (expected, False)):
        retrain(config, each, resume=resume)
    assert_same_run(folder, expected)


def test_other_images_are_not_continued_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs.few_images(monkeypatch)
    with pytest.raises(CrashError):
        retrain(retrain_config(), tmp_path, report=crash_in(1))
    runs.few_images(monkeypatch, train=120)
    with pytest.raises(ValueError, match=r"other images .*: 128.* there, .*: 120.* now"):
        retrain(retrain_config(), tmp_path, resume=True)
    runs.few_images(monkeypatch)
    assert 0 <= retrain(retrain_config(), tmp_path, resume=True).test_top1 <= 1


@pytest.mark.usefixtures("few_retrained")
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrain_config(epochs=9, checkpoint_epochs=2)
    retrain(config, tmp_path / "whole")
    save = CheckpointWriter.save

    def full(self: CheckpointWriter, state: dict) -> None:
        with runs.room_for(50_000 if state["epoch"] == 4 else resource.RLIM_INFINITY):
            save(self, state)
            assert self._written is not None
            self._written.exception()  # waits; raised when the next is saved

    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", full)
        with pytest.raises(ValueError, match=r"File too large.*last whole checkpoint is kept"):
            retrain(config, folder)
    assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == 2
    assert len(read_trace(folder / "train.jsonl")) == 5  # not until the next checkpoint
    retrain(config, folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")
