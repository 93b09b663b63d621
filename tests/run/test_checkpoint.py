"""Checkpoints: whole or not at all, and read without executing anything."""

import contextlib
import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.runs import save_checkpoint

from dasvit.run.checkpoint import check_same_settings, load_checkpoint, restore

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


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path, KIND)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 130  # ours, not PyTorch's long advice
    assert "weights_only" not in text


def test_round_trip(path: Path) -> None:
    saved = state()
    save_checkpoint(path, KIND, saved)
    loaded = load_checkpoint(path, KIND)
    assert loaded.pop("kind") == KIND
    assert loaded.pop("num_threads") == torch.get_num_threads()
    runs.assert_same_state(dict(loaded), saved)
    assert loaded["seconds"] == 1.5
    assert isinstance(loaded["model"], OrderedDict)
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


def test_a_disk_that_fills_up_within_a_tensor(path: Path) -> None:
    """What the system says, not what PyTorch's writer makes of it."""
    save_checkpoint(path, KIND, {"epoch": 1})
    with (
        runs.room_for(100_000),
        pytest.raises(ValueError, match=r"cannot write .*File too large.*make room"),
    ):
        save_checkpoint(path, KIND, {"epoch": 2, "model": torch.zeros(100_000)})
    assert load_checkpoint(path, KIND)["epoch"] == 1
    assert runs.names_in(path.parent) == ["checkpoint.pt"]


def test_a_run_goes_on_with_as_many_threads(path: Path) -> None:
    """The order of sums depends on it, and so do the bits."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        save_checkpoint(path, KIND, state())
        torch.set_num_threads(1)
        restore(path, KIND, lambda saved: None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_missing(path: Path) -> None:
    assert_refused(path, "there is no checkpoint")


def test_a_folder(path: Path) -> None:
    path.mkdir()
    assert_refused(path, "is not a readable checkpoint")


def test_another_kind(path: Path) -> None:
    save_checkpoint(path, "dasvit/other/1", state())
    assert_refused(path, "is a checkpoint of kind 'dasvit/other/1', not 'dasvit/test/1'")
    torch.save({"epoch": 1}, path)
    assert_refused(path, "of kind None")
    torch.save([1, 2], path)
    assert_refused(path, "of kind None")


def test_truncated_anywhere(path: Path) -> None:
    save_checkpoint(path, KIND, state())
    content = path.read_bytes()
    for size in (*range(0, len(content), 97), len(content) - 1):
        path.write_bytes(content[:size])
        assert_refused(path, "is not a readable checkpoint")


def test_garbage(path: Path) -> None:
    """Bytes that are no checkpoint, some of which pass for the start of a pickle."""
    noise = random.Random(0)
    for _ in range(150):
        path.write_bytes(noise.randbytes(noise.randrange(1, 200)))
        assert_refused(path, "is not a readable checkpoint")
    for text in ("", "epoch 3", "<html>", '{"kind": "dasvit/test/1"}'):
        path.write_text(text)
        assert_refused(path, "is not a readable checkpoint")


def test_changed_bytes_are_an_error_or_another_value_never_a_crash(path: Path) -> None:
    save_checkpoint(path, KIND, state())
    content = path.read_bytes()
    noise, refused = random.Random(0), 0
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
        (lambda state: len(state["epoch"]), "TypeError: object of type"),
    ],
)
def test_a_checkpoint_that_does_not_fit(path: Path, wrong: Callable, reason: str) -> None:
    save_checkpoint(path, KIND, {"epoch": 1})
    with pytest.raises(ValueError, match=f"does not fit this run .{reason}") as caught:
        restore(path, KIND, wrong)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    seen: list[dict[str, Any]] = []
    restore(path, KIND, seen.append)
    assert seen[0]["epoch"] == 1


def test_same_settings() -> None:
    check_same_settings({"a": 1, "b": [1, {"c": None}]}, {"b": [1, {"c": None}], "a": 1}, "run")


@pytest.mark.parametrize(
    ("saved", "current", "message"),
    [
        ({"a": 1}, {"a": 2}, r"run holds a run with other settings \(a: 1 there, 2 now\)"),
        ({"a": 1}, {"a": 1, "b": "x"}, r"\(b: None there, 'x' now\)"),
        ({"a": 1, "b": 0.5}, {"a": 1}, r"\(b: 0\.5 there, None now\)"),
        ({"b": 1, "a": 1, "c": 3}, {"a": 2, "b": 2, "c": 3}, r"\(a: 1 .* now; b: 1 .* 2 now\);"),
    ],
)
def test_other_settings_are_named(saved: dict, current: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_same_settings(saved, current, "run")
    assert "choose another folder" in str(caught.value)
