"""Checkpoints: whole or not at all, written beside training, read without executing anything."""

import contextlib
import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import save_checkpoint

from dasvit.run.checkpoint import CheckpointWriter, load_checkpoint, restore

KIND = "dasvit/test/1"


def state() -> dict[str, Any]:
    """Everything that a run stores, with an optimiser's nested state."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return {
        "config": {"operations": ["zero", "msa_h2"], "xi": 0.05, "plugins": [], "data_dir": None},
        "epoch": 3,
        "seconds": 1.5,
        "edge_ops": [["zero", "msa_h2"]] * 5,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": {"cpu": torch.get_rng_state()},
    }


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


# --- Written whole, or not at all


def test_round_trip(path: Path) -> None:
    saved = state()
    save_checkpoint(path, KIND, saved)
    loaded = load_checkpoint(path, KIND)
    assert loaded.pop("kind") == KIND
    assert loaded.pop("num_threads") == torch.get_num_threads()
    runs.assert_same_state(dict(loaded), saved)
    assert runs.names_in(path.parent) == ["checkpoint.pt"]


def test_a_crash_while_saving_keeps_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(path, KIND, {"epoch": 1})

    def crash(*args: Any) -> None:
        raise OSError("disk full")

    for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, crash)
            with pytest.raises((OSError, ValueError), match="disk full"):
                save_checkpoint(path, KIND, {"epoch": 2})
        assert load_checkpoint(path, KIND)["epoch"] == 1
        assert runs.names_in(path.parent) == ["checkpoint.pt"]


def test_what_a_killed_process_left_is_removed(path: Path) -> None:
    """Up to some GiB each time, under a name that the next process does not use."""
    left = [path.with_name(f".checkpoint.pt.{os.getpid() + n}.tmp") for n in (1, 2)]
    others = [path.with_name(n) for n in (".model.1.tmp", "checkpoint.pt.old")]
    for each in (*left, *others):
        each.write_bytes(b"half")
    with CheckpointWriter(path, KIND):
        assert not any(each.exists() for each in left)
    assert all(each.exists() for each in others)


# --- Written beside training


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
    """Not with all of the tensor that it is a part of."""
    save_checkpoint(path, KIND, {"part": torch.arange(100_000.0)[10:12]})
    assert load_checkpoint(path, KIND)["part"].tolist() == [10, 11]
    assert path.stat().st_size < 5000


def test_the_run_goes_on_and_the_next_waits(path: Path, disk: Disk) -> None:
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.save({"epoch": 1})
        assert disk.ended == 0  # and we are here
        assert checkpoints.busy
        checkpoints.check()  # does not wait either
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


def test_what_could_not_be_written_is_told_once(path: Path) -> None:
    """When the next one is saved, and after the next epoch, many epochs before that."""
    with CheckpointWriter(path, KIND) as checkpoints:
        checkpoints.save({"epoch": 1})
        for ask in (lambda: checkpoints.save({"epoch": 3}), checkpoints.check):
            save_without_room(checkpoints)
            with pytest.raises(ValueError, match=r"File too large.*last whole checkpoint is kept"):
                ask()
            checkpoints.check()
        assert load_checkpoint(path, KIND)["epoch"] == 1
        checkpoints.save({"epoch": 4})  # there is room again
    assert load_checkpoint(path, KIND)["epoch"] == 4


def test_what_could_not_be_written_is_told_at_the_end(path: Path) -> None:
    """By a warning where the run itself failed: its error is not hidden."""

    def run(error: Exception | None) -> None:
        with CheckpointWriter(path, KIND) as checkpoints:
            save_without_room(checkpoints)
            if error:
                raise error

    with pytest.raises(ValueError, match="File too large"):
        run(None)
    with pytest.raises(FloatingPointError), pytest.warns(UserWarning, match="File too large"):
        run(FloatingPointError())


def test_a_run_that_fails_still_has_its_last_checkpoint(path: Path, disk: Disk) -> None:
    def run() -> None:
        with CheckpointWriter(path, KIND) as checkpoints:
            checkpoints.save({"epoch": 7})
            threading.Timer(0.1, disk.goes_on.set).start()
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        run()
    assert load_checkpoint(path, KIND)["epoch"] == 7


# --- Read


def test_a_run_goes_on_with_as_many_threads(path: Path) -> None:
    """The order of sums depends on it, and so do the bits. A thread of its own has another."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        save_checkpoint(path, KIND, state())
        torch.set_num_threads(before)
        restore(path, KIND, lambda saved: None)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path, KIND)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    assert "weights_only" not in text  # ours, not PyTorch's long advice


def test_what_is_no_checkpoint_of_the_kind(path: Path) -> None:
    assert_refused(path, "there is no checkpoint")
    save_checkpoint(path, "dasvit/other/1", state())
    assert_refused(path, "is a checkpoint of kind 'dasvit/other/1', not 'dasvit/test/1'")
    for other in ({"epoch": 1}, [1, 2]):
        torch.save(other, path)
        assert_refused(path, "of kind None")
    path.unlink()
    path.mkdir()
    assert_refused(path, "is not a readable checkpoint")


def test_damaged_bytes(path: Path) -> None:
    """Truncated anywhere, noise that may pass for the start of a pickle, text, a changed bit: an
    error of ours, or another value, and never a crash."""
    save_checkpoint(path, KIND, state())
    content, noise = path.read_bytes(), random.Random(0)
    for damaged in (
        *(content[:size] for size in (*range(0, len(content), 97), len(content) - 1)),
        *(noise.randbytes(noise.randrange(1, 200)) for _ in range(150)),
        *(b"epoch 3", b'{"kind": "dasvit/test/1"}'),
    ):
        path.write_bytes(damaged)
        assert_refused(path, "is not a readable checkpoint")
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[noise.randrange(len(content))] ^= 1 << noise.randrange(8)
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):  # any other error fails the test
            load_checkpoint(path, KIND)
            continue
        refused += 1
    assert refused > 20


class Harm:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["torch", "torch, legacy", "pickle"])
def test_code_is_refused_and_not_run(path: Path, tmp_path: Path, how: str) -> None:
    target = tmp_path / "harm"
    values = {"kind": KIND, "epoch": Harm(target)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(values, protocol=2))
    else:
        torch.save(values, path, _use_new_zipfile_serialization=how == "torch")
    assert_refused(path, "is not a readable checkpoint")
    assert not target.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert target.exists()  # the file was harmful


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda state: state["model"]["weight"], "KeyError: 'model'"),
        (lambda state: torch.nn.Linear(3, 4).load_state_dict(state), "RuntimeError: Error"),
    ],
)
def test_a_checkpoint_that_does_not_fit(path: Path, wrong: Callable, reason: str) -> None:
    save_checkpoint(path, KIND, {"epoch": 1, "data": {"count": 3}})
    with pytest.raises(ValueError, match=f"{path} does not fit this run .{reason}") as caught:
        restore(path, KIND, wrong, {"count": 3})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is of other images"):
        restore(path, KIND, wrong, {"count": 4})
    seen: list[dict[str, Any]] = []
    restore(path, KIND, seen.append, {"count": 3})
    assert seen[0]["epoch"] == 1
