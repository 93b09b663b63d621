"""Checkpoints written while the run trains on."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import save_checkpoint

from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint

KIND = "dasvit/test/1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


class Disk:
    """A disk that is as slow as a test wants."""

    def __init__(self) -> None:
        self.goes_on, self.begun, self.ended = threading.Event(), 0, 0
        self._save = torch.save

    def save(self, *args: Any) -> None:
        assert self.begun == self.ended, "one at a time"
        self.begun += 1
        assert self.goes_on.wait(60)
        self._save(*args)
        self.ended += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(torch, "save", disk.save)
    yield disk
    disk.goes_on.set()


def test_what_is_written_is_the_state_when_it_was_saved(path: Path, disk: Disk) -> None:
    """Weights, moments, counts and lists that go on changing while the file is written."""
    model = torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.AdamW(model.parameters())
    rows = [[1.0]]

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        rows[0][0] += 1

    def state() -> dict[str, Any]:
        values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
        return {**values, "pair": (torch.ones(2), None, "α")}

    step()
    disk.goes_on.set()
    save_checkpoint(path.with_name("expected.pt"), KIND, state())
    disk.goes_on.clear()
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.save(state())
        step()
        assert not path.exists()
        disk.goes_on.set()
    expected, found = (load_checkpoint(p, KIND) for p in (path.with_name("expected.pt"), path))
    runs.assert_same_state(found, expected)
    assert found["model"]._metadata == expected["model"]._metadata
    assert found["rows"] == [[2.0]]


def test_a_view_is_written_alone(path: Path) -> None:
    """Not with all of the tensor it is a part of."""
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.save({"part": torch.arange(100_000.0)[10:12]})
    assert load_checkpoint(path, KIND)["part"].tolist() == [10, 11]
    assert path.stat().st_size < 5000


def test_the_run_goes_on_and_the_next_waits(path: Path, disk: Disk) -> None:
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.save({"epoch": 1})
        assert disk.ended == 0  # and we are here
        assert checkpoints.busy
        other = threading.Thread(target=checkpoints.save, args=({"epoch": 2},))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        disk.goes_on.set()
        other.join(60)
        checkpoints.wait()
        assert not checkpoints.busy
        assert disk.ended == 2
        assert load_checkpoint(path, KIND)["epoch"] == 2
        disk.goes_on.clear()
        checkpoints.save({"epoch": 3})
        assert load_checkpoint(path, KIND)["epoch"] == 2  # whole until the next one is
        disk.goes_on.set()
    assert load_checkpoint(path, KIND)["epoch"] == 3  # the end waits
    assert runs.names_in(path.parent) == ["checkpoint.pt"]


def save_without_room(checkpoints: CheckpointWriter) -> None:
    checkpoints.wait()
    with runs.room_for(1000):
        checkpoints.save({"weights": torch.ones(10_000)})
        assert checkpoints._written is not None
        checkpoints._written.exception()


def test_what_could_not_be_written_is_told_when_the_next_is_saved(path: Path) -> None:
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.save({"epoch": 1})
        save_without_room(checkpoints)
        with pytest.raises(ValueError, match=r"File too large.*the last whole checkpoint is kept"):
            checkpoints.save({"epoch": 3})
        assert load_checkpoint(path, KIND)["epoch"] == 1
        checkpoints.save({"epoch": 4})  # there is room again
    assert load_checkpoint(path, KIND)["epoch"] == 4


def test_what_could_not_be_written_is_told_after_the_next_epoch(path: Path, disk: Disk) -> None:
    """Not when the next checkpoint is due, many epochs later."""
    disk.goes_on.set()
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.check()
        disk.goes_on.clear()
        checkpoints.save({"epoch": 1})
        checkpoints.check()  # does not wait
        assert disk.ended == 0
        disk.goes_on.set()
        save_without_room(checkpoints)
        with pytest.raises(ValueError, match="File too large"):
            checkpoints.check()
        checkpoints.check()  # told once
    assert load_checkpoint(path, KIND)["epoch"] == 1


def test_what_could_not_be_written_is_told_at_the_end(path: Path) -> None:
    def run() -> None:
        with CheckpointWriter(path, KIND) as checkpoints:
            save_without_room(checkpoints)

    with pytest.raises(ValueError, match="File too large"):
        run()


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(path: Path) -> None:
    def run() -> None:
        with CheckpointWriter(path, KIND) as checkpoints:
            save_without_room(checkpoints)
            raise FloatingPointError("not finite")

    with (
        pytest.raises(FloatingPointError, match="not finite"),
        pytest.warns(UserWarning, match="File too large"),
    ):
        run()


def test_a_run_that_fails_still_has_its_last_checkpoint(path: Path, disk: Disk) -> None:
    def run() -> None:
        with CheckpointWriter(path, KIND) as checkpoints:
            checkpoints.save({"epoch": 7})
            threading.Timer(0.1, disk.goes_on.set).start()
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        run()
    assert load_checkpoint(path, KIND)["epoch"] == 7


def test_the_threads_are_those_of_the_run(path: Path) -> None:
    """A thread of its own starts with another number."""
    before = torch.get_num_threads()
    other = before + 1
    try:
        torch.set_num_threads(other)
        with CheckpointWriter(path, KIND) as checkpoints:
            checkpoints.save({})
    finally:
        torch.set_num_threads(before)
    assert load_checkpoint(path, KIND)["num_threads"] == other


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    """Up to some GiB a time, under a name that the next process does not use."""
    left = [path.with_name(f".checkpoint.pt.{os.getpid() + n}.tmp") for n in (1, 2)]
    others = [path.with_name(n) for n in (".model.1.tmp", "checkpoint.pt.old")]
    for each in (*left, *others):
        each.write_bytes(b"half")
    with CheckpointWriter(path, KIND):
        assert not any(each.exists() for each in left)
    assert all(each.exists() for each in others)
