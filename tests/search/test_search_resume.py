"""Searches that are killed at any moment and resumed: the same to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import OPERATIONS, CrashError, search_config
from support.search_runs import VARIANTS, assert_same_run, run

import dasvit.search.loop
import dasvit.search.step
from dasvit.report.events import Event, SearchEpoch, SearchResult, StageEnd
from dasvit.report.record import load_search_result, read_trace
from dasvit.run.checkpoint import load_checkpoint
from dasvit.run.folder import check_folder
from dasvit.run.settings import config_to_dict
from dasvit.search.architect import weight_gradient
from dasvit.search.config import SearchConfig
from dasvit.search.loop import KIND, load_search_config, search

ROOT = Path(__file__).parents[2]


def crash_before_checkpoint(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    """The epoch is computed and reported, its checkpoint is not written."""
    return runs.crash_at(lambda event: isinstance(event, SearchEpoch) and event.epoch == epoch)


def crash_after_checkpoint(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    runs.crash_after_saving(monkeypatch, epoch)
    return None


def crash_while_saving(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    """The new checkpoint is written but has not got its name yet."""
    move = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if Path(target).name == "checkpoint.pt":
            raise CrashError
        return move(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    return None


def crash_within_epoch(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    """Alphas of the second step are updated, its weights are not."""
    calls = {"count": 0}

    def gradient(*args: Any) -> Any:
        calls["count"] += 1
        if calls["count"] == 2:
            raise CrashError
        return weight_gradient(*args)

    monkeypatch.setattr(dasvit.search.step, "weight_gradient", gradient)
    return None


@pytest.mark.usefixtures("few_searched")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "crash",
    [crash_before_checkpoint, crash_after_checkpoint, crash_while_saving, crash_within_epoch],
)
def test_killed_in_every_epoch_and_resumed(
    crash: Callable,
    variant: str,
    whole_search: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = search_config(**VARIANTS[variant])
    expected = whole_search(variant)
    for epoch in range(config.total_epochs):
        with monkeypatch.context() as patch:
            report = crash(patch, epoch) or (lambda event: None)
            with pytest.raises(CrashError):
                search(config, tmp_path, report=report, resume=True)
        if crash is crash_after_checkpoint:
            assert load_checkpoint(tmp_path / "checkpoint.pt", KIND)["epoch"] == epoch + 1
        else:
            assert (tmp_path / "checkpoint.pt").exists() == (epoch > 0)
            # One more epoch, so that the next crash comes an epoch later.
            with monkeypatch.context() as patch:
                crash_after_checkpoint(patch, epoch)
                with pytest.raises(CrashError):
                    search(config, tmp_path, resume=True)
        torch.rand(epoch + 1)  # another process has another random state
    result, _ = run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, expected)
    rows = read_trace(tmp_path / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.total_epochs))
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert not list(tmp_path.glob(".*"))  # no temporary file stays


@pytest.mark.usefixtures("few_searched")
def test_killed_between_sparse_checkpoints_and_resumed(tmp_path: Path) -> None:
    """Of stages of 3 epochs: checkpoints after the 2nd, the 3rd (a stage's last), the 4th, ..."""
    config = search_config(stage_epochs=3, checkpoint_epochs=2)
    search(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    for epoch, kept in [(0, None), (1, None), (2, 2), (3, 3), (4, 4), (5, 4)]:
        crash = runs.crash_at(lambda e, n=epoch: isinstance(e, SearchEpoch) and e.epoch == n)
        with pytest.raises(CrashError):
            search(config, folder, report=crash, resume=True)
        assert (folder / "checkpoint.pt").exists() == (kept is not None)
        if kept is not None:
            assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == kept
    run(config, folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")
    rows = read_trace(folder / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.total_epochs))


@pytest.mark.usefixtures("few_searched")
@pytest.mark.parametrize("kind", [StageEnd, SearchResult])
def test_killed_at_the_end_of_a_stage_or_of_the_run(
    kind: type, whole_search: Callable[[str], Path], tmp_path: Path
) -> None:
    config = search_config()
    expected = whole_search("first order")
    with pytest.raises(CrashError):
        search(config, tmp_path, report=runs.crash_at(lambda event: isinstance(event, kind)))
    result, events = run(config, tmp_path, resume=True)
    assert_same_run(tmp_path, expected)
    # A result on disk marks the end: nothing is computed again.
    assert [type(e) for e in events][:1] == ([StageEnd] if kind is StageEnd else [])
    assert result == load_search_result(tmp_path / "result.json")


@pytest.mark.usefixtures("few_searched")
def test_begun_by_a_version_with_fewer_settings_and_resumed(
    whole_search: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_after_checkpoint(patch, 0)
        with pytest.raises(CrashError):
            search(search_config(), tmp_path)
    path = tmp_path / "config.json"
    now = path.read_text()
    before = json.loads(now)
    for name in ("compile", "cuda_graph", "eval_epochs"):
        del before["config"][name]
    del before["config"]["data"]["num_workers"]
    path.write_text(json.dumps(before))
    with pytest.raises(ValueError, match=r"other settings \(cuda_graph: False there, True now\)"):
        check_folder(
            tmp_path,
            KIND,
            config_to_dict(search_config(cuda_graph=True)),
            defaults=config_to_dict(SearchConfig()),
            resume=True,
        )
    search(search_config(), tmp_path, resume=True)
    assert_same_run(tmp_path, whole_search("first order"))
    assert path.read_text() == now


@pytest.mark.usefixtures("few_searched")
def test_killed_between_the_genotype_and_the_result(
    whole_search: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole_search("first order")

    def crash(path: Path, result: SearchResult) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(dasvit.search.loop, "save_result", crash)
        with pytest.raises(CrashError):
            search(search_config(), tmp_path)
    assert not (tmp_path / "result.json").exists()
    search(search_config(), tmp_path, resume=True)
    assert_same_run(tmp_path, expected)


@pytest.mark.timeout(900)  # processes that start: seconds, minutes on a busy machine
def test_sigkill_within_an_epoch_and_resume_from_the_command_line(tmp_path: Path) -> None:
    """Real processes on the full digits; the reference runs in this one."""
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-m", "dasvit", "search"]
    settings = [
        *("--operations", *OPERATIONS, "--stage-layers", "1", "1", "2", "--stage-epochs", "2"),
        *(
            "--augment",
            "none",
            "--dim",
            "12",
            "--patch-size",
            "4",
            "--batch-size",
            "128",
            "--weight-lr",
            "3e-3",
        ),
        *("--alpha-lr", "3e-2", "--grad-clip", "0", "--xi", "0.05", "--dropout", "0.1"),
        *("--device", "cpu", "--out", str(folder)),
    ]
    process = subprocess.Popen(
        [*python, *settings], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 400
    try:
        while not (_num_lines(folder / "alpha.jsonl") >= 2 and (folder / "checkpoint.pt").exists()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    done = subprocess.run(
        [*python, "--resume", str(folder), "--device", "cpu"],
        cwd=tmp_path,
        env=env | {"OMP_NUM_THREADS": "2"},  # it takes as many threads as the killed one had
        capture_output=True,
        text=True,
        check=True,
    )
    assert "epoch 1/6" not in done.stdout
    assert "epoch 6/6" in done.stdout
    config = load_search_config(folder)
    assert (config.xi, config.dropout, config.stage_layers) == (0.05, 0.1, (1, 1, 2))
    search(config, expected)
    assert_same_run(folder, expected)


def test_other_images_are_not_continued_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs.few_images(monkeypatch, dasvit.search.loop)
    with pytest.raises(CrashError):
        run_until(tmp_path, epoch=1)
    runs.few_images(monkeypatch, dasvit.search.loop, train=120)
    with pytest.raises(ValueError, match=r"other images .*: 128.* there, .*: 120.* now"):
        search(search_config(), tmp_path, resume=True)
    runs.few_images(monkeypatch, dasvit.search.loop)
    assert search(search_config(), tmp_path, resume=True).genotype


def run_until(folder: Path, epoch: int) -> None:
    """A search that ends without a word in the middle of an epoch."""
    search(
        search_config(),
        folder,
        report=runs.crash_at(lambda event: isinstance(event, SearchEpoch) and event.epoch == epoch),
    )


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
