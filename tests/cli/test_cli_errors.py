"""The command line's errors: one line for what a user can mend."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import runs
from support.cli_calls import RETRAIN, SEARCH, Done
from support.runs import ENCODER, files_of, names_in

import dasvit.search.loop
import dasvit.search.step
import dasvit.spaces.cell.operations
import dasvit.training.loop
from dasvit.cli import main
from dasvit.search.config import SearchConfig

ROOT = Path(__file__).parents[2]


def genotype_file(name: str, content: str) -> Callable[[Path], None]:
    def write(workdir: Path) -> None:
        (workdir / name).write_text(content)

    return write


def changed_genotype(**changes: Any) -> str:
    values = ENCODER.to_dict()
    del values["hash"]
    return json.dumps(values | changes)


def nothing(workdir: Path) -> None:
    pass


def someones_folder(workdir: Path) -> None:
    (workdir / "used").mkdir()
    (workdir / "used" / "photos.json").write_text("{}")


def someones_file(workdir: Path) -> None:
    (workdir / "used").write_text("text")


def another_runs_folder(workdir: Path) -> None:
    (workdir / "used").mkdir()
    (workdir / "used" / "config.json").write_text('{"kind": "dasvit/retrain/1", "config": {}}')


def malformed_settings(workdir: Path) -> None:
    (workdir / "used").mkdir()
    values = {"kind": "dasvit/search/1", "config": {"colour": "blue"}}
    (workdir / "used" / "config.json").write_text(json.dumps(values))


def empty_folder(workdir: Path) -> None:
    (workdir / "used").mkdir()


EDGE_FROM_LATER = [[{"source": 3, "operation": "mlp_r3"}], [{"source": 0, "operation": "mlp_r3"}]]
UNKNOWN_OPERATION = [[{"source": 0, "operation": "pool_k3"}]]
BAD_FILES = {
    "schema": ("schema 'other/9'", changed_genotype(schema="other/9")),
    "no schema": ("is not a genotype", '{"nodes": []}'),
    "operation": ("unknown operation 'pool_k3'", changed_genotype(nodes=UNKNOWN_OPERATION)),
    "later node": ("edge from source 3", changed_genotype(nodes=EDGE_FROM_LATER)),
    "truncated": ("not valid JSON", changed_genotype()[:-20]),
    "hash": ("'0123456789ab'", changed_genotype(hash="0123456789ab")),
    "not JSON": ("not valid JSON", "o_0 = mlp_r3(e_{k-1})"),
}

BAD: list[tuple[str, list[str], Callable[[Path], None]]] = [
    ("unknown preset 'mnist'", ["search", "--preset", "mnist"], nothing),
    ("unknown preset 'mnist'", ["retrain", "--preset=mnist"], nothing),
    ("unknown preset 'mnist'", ["complexity", "--preset", "mnist"], nothing),
    (
        "unknown operation 'pool_k3'",
        [*SEARCH, "--operations", "zero", "pool_k3", "--stage-ops", "2", "2"],
        nothing,
    ),
    ("stage_ops=(8, 3) with 2", [*SEARCH, "--operations", "zero", "identity"], nothing),
    ("unknown data set 'mnist'", [*SEARCH, "--dataset", "mnist"], nothing),
    ("unknown data set 'mnist'", [*RETRAIN, "--model", "vit", "--dataset", "mnist"], nothing),
    ("but got 0.0", [*SEARCH, "--token-ratio", "0"], nothing),
    ("but got 1.5", [*SEARCH, "--token-ratio", "1.5"], nothing),
    ("but got -0.5", [*SEARCH, "--token-ratio", "-0.5"], nothing),
    ("but got nan", [*SEARCH, "--token-ratio", "nan"], nothing),
    (
        "(gamma_min=0.5, gamma_max=0.5)",
        [*SEARCH, "--gamma-min", "0.5", "--gamma-max", "0.5"],
        nothing,
    ),
    ("(gamma_min=0.9, gamma_max=0.5)", [*SEARCH, "--gamma-min", "0.9"], nothing),
    ("heads do not divide the width dim=50", [*SEARCH, "--dim", "50"], nothing),
    ("(vit_heads=5, dim=12)", [*RETRAIN, "--model", "vit", "--vit-heads", "5"], nothing),
    ("but got -0.1", [*SEARCH, "--xi", "-0.1"], nothing),
    ("but got -1", [*SEARCH, "--seed", "-1"], nothing),
    ("patch_size=3, image_size=8", [*SEARCH, "--patch-size", "3"], nothing),
    ("(warmup_epochs=9, epochs=2)", [*RETRAIN, "--warmup-epochs", "9"], nothing),
    ("'cifar10' needs --data-dir", [*SEARCH, "--dataset", "cifar10"], nothing),
    ("no folder nowhere", [*SEARCH, "--dataset", "cifar10", "--data-dir", "nowhere"], nothing),
    (
        "used lacks train-images-idx3",
        [*SEARCH, "--dataset", "fashion_mnist", "--data-dir", "used"],
        empty_folder,
    ),
    (
        "lacks 100 of 100 class folders",
        [*SEARCH, "--dataset", "imagenet100", "--data-dir", "used"],
        empty_folder,
    ),
    ("cannot import 'no_such_plugin'", [*SEARCH, "--plugins", "no_such_plugin"], nothing),
    ("device 'cuda:99' is not there", [*SEARCH, "--device", "cuda:99"], nothing),
    ("but got 'tpu'", [*SEARCH, "--device", "tpu"], nothing),
    ("used holds something else", [*SEARCH, "--out", "used"], someones_folder),
    (
        "used holds something else",
        [*RETRAIN, "--model", "vit", "--out", "used"],
        someones_folder,
    ),
    ("used holds a run already", [*SEARCH, "--out", "used"], another_runs_folder),
    ("used is a file", [*SEARCH, "--out", "used"], someones_file),
    ("cannot write to used/below", [*SEARCH, "--out", "used/below"], someones_file),
    ("no file nowhere/config.json", ["search", "--resume", "nowhere"], nothing),
    ("no file nowhere/config.json", ["retrain", "--resume", "nowhere"], nothing),
    ("kind 'dasvit/retrain/1'", ["search", "--resume", "used"], another_runs_folder),
    ("kind 'dasvit/search/1'", ["retrain", "--resume", "used"], malformed_settings),
    ("unknown settings ['colour']", ["search", "--resume", "used"], malformed_settings),
    ("unknown model 'nonsense'", [*RETRAIN, "--model", "nonsense"], nothing),
    ("nowhere.json is neither", [*RETRAIN, "--model", "nowhere.json"], nothing),
    ("no file nowhere/config.json", ["evaluate", "nowhere", "--device", "cpu"], nothing),
    ("no file used/config.json", ["evaluate", "used", "--device", "cpu"], empty_folder),
    ("kind 'dasvit/search/1'", ["evaluate", "used"], malformed_settings),
    ("unknown model 'nonsense'", ["complexity", "--model", "nonsense"], nothing),
    ("dim=50", ["complexity", "--model", "dasvit_cifar10", "--dim", "50"], nothing),
    ("nonsense is neither", ["draw", "nonsense"], nothing),
    ("used/genotype.json is neither", ["draw", "used"], empty_folder),
    ("cannot write used/a", ["draw", "dasvit_cifar10", "--out", "used/a"], someones_file),
    ("cannot import 'no_such_plugin'", ["draw", "x", "--plugins", "no_such_plugin"], nothing),
    *(
        (message, argv, genotype_file("bad.json", content))
        for message, content in BAD_FILES.values()
        for argv in (
            [*RETRAIN, "--model", "bad.json"],
            ["draw", "bad.json"],
            ["complexity", "--model", "bad.json", "--dim", "12"],
        )
    ),
]


@pytest.mark.parametrize(("fragment", "argv", "prepare"), BAD)
def test_bad_input_is_one_line(
    workdir: Path,
    call: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    fragment: str,
    argv: list[str],
    prepare: Callable[[Path], None],
) -> None:
    """The value, exit status 2, nothing computed, nothing written."""
    prepare(workdir)
    before = files_of(workdir)

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(dasvit.search.step, "weight_gradient", never)
    monkeypatch.setattr("dasvit.training.epochs.Training.epoch", never)
    done = call(*argv)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert fragment in done.err
    assert files_of(workdir) == before


def test_corrupt_images_are_one_line_before_training(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real loader
    monkeypatch.chdir(workdir)
    (workdir / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (workdir / "data" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04truncated")
    before = files_of(workdir)
    for argv in (SEARCH, [*RETRAIN, "--model", "vit"]):
        done = call(*argv, "--dataset", "cifar10", "--data-dir", "data")
        assert done.code == 2
        assert re.fullmatch(r"error: cifar10 in data is missing or corrupt .*\n", done.err)
    assert files_of(workdir) == before


def test_a_corrupt_checkpoint_is_one_line(workdir: Path, call: Callable[..., Done]) -> None:
    for argv, resume in ((SEARCH, "search"), ([*RETRAIN, "--model", "vit"], "retrain")):
        assert call(*argv, "--out", resume).code == 0
        (workdir / resume / "result.json").unlink()
        path = workdir / resume / "checkpoint.pt"
        path.write_bytes(path.read_bytes()[:1000])
        done = call(resume, "--resume", resume, "--device", "cpu")
        assert done.code == 2
        assert re.fullmatch(rf"error: {resume}/checkpoint\.pt is not a readable .*\n", done.err)
        assert len(path.read_bytes()) == 1000


def test_a_truncated_model_is_one_line(workdir: Path, call: Callable[..., Done]) -> None:
    assert call(*RETRAIN, "--model", "vit", "--out", "vit").code == 0
    path = workdir / "vit" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    done = call("evaluate", "vit", "--device", "cpu")
    assert done.code == 2
    assert re.fullmatch(r"error: vit/model/model\.safetensors .* is truncated .*\n", done.err)


@pytest.mark.parametrize(
    "argv", [["search", "--no-such-flag", "1"], ["search", "--dim", "wide"], ["sweep"], []]
)
def test_what_is_no_command_is_refused(
    workdir: Path, call: Callable[..., Done], argv: list
) -> None:
    done = call(*argv)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert all(word in done.err for word in argv if word.startswith(("--no", "wide", "sweep")))
    assert names_in(workdir) == []


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_an_interrupt_names_the_way_on(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"dasvit.commands.{command}.{command}", interrupted)
        done = call(*(SEARCH if command == "search" else [*RETRAIN, "--model", "vit"]))
    assert done.code == 130
    assert done.err.count("\n") == 1
    default = {"search": "runs/search-digits-seed0", "retrain": "runs/retrain-digits-vit-seed0"}
    assert done.err == "error: stopped, start again: nothing was begun\n"
    (workdir / default[command]).mkdir(parents=True)
    (workdir / default[command] / "config.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(f"dasvit.commands.{command}.{command}", interrupted)
        done = call(*(SEARCH if command == "search" else [*RETRAIN, "--model", "vit"]))
    assert f"continue with: python -m dasvit {command} --resume {default[command]}" in done.err
    assert "checkpoint" not in done.err


def test_an_interrupted_search_goes_on(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very command that the error names; TensorBoard files and the trace go on."""
    with monkeypatch.context() as patch:
        patch.setattr(dasvit.search.loop._Run, "enter_next_stage", _interrupt)
        done = call(*SEARCH)
    assert done.code == 130
    (command,) = re.findall(r"python -m dasvit (.*)\n", done.err)
    done = call(*command.split(), "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "epoch 1/2" not in done.out
    assert "epoch 2/2" in done.out
    rows = runs.rows_without_times(workdir / "runs" / "search-digits-seed0" / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1]


def _interrupt(self: Any) -> None:
    raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_is_one_line(workdir: Path, call: Callable[..., Done]) -> None:
    done = call(*SEARCH, "--weight-lr", "1e25", "--grad-clip", "0")
    assert done.code == 1
    assert re.fullmatch(r"error: the loss .* not finite in epoch 0 .* weight_lr.*\n", done.err)


def test_errors_of_the_program_keep_their_traceback(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what a user can mend is one line."""

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("dasvit.commands.search.search", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(SEARCH)


def test_every_setting_of_a_search_has_a_flag(call: Callable[..., Done]) -> None:
    text = call("search", "--help").out
    for f in dataclasses.fields(SearchConfig):
        if f.name != "data":
            assert f"--{f.name.replace('_', '-')}" in text, f.name


def test_a_full_disk_is_one_line(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "found/alpha.jsonl")

    monkeypatch.setattr("dasvit.report.record.JsonLinesReport.__call__", full)
    done = call(*SEARCH, "--out", "found")
    assert done.code == 1
    assert done.err == (
        "error: found/alpha.jsonl: No space left on device; mend that, then continue with: "
        "python -m dasvit search --resume found\n"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [
        "-m dasvit complexity --help",
        "-m dasvit complexity --preset digits --no-latency",
        "tune/run_search.py --help",
    ],
)
def test_a_reader_that_goes_ends_it_quietly(arguments: str, unbuffered: str) -> None:
    """`python -m dasvit table1 | head -1`, and one that reads nothing."""
    for reader in ("head -1", "true"):
        command = f"{sys.executable} {arguments} | {reader}"
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
        assert done.stderr == ""


def test_errors_of_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dasvit", "search", "--xi", "-1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: xi (ξ) must be >= 0, but got -1.0; 0 is the first-order approximation\n"
    )
    assert names_in(tmp_path) == []
