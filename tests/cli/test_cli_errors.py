"""The command line's errors: one line for what a user can mend."""

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
from dasvit.cli import main

ROOT = Path(__file__).parents[2]
VIT = [*RETRAIN, "--model", "vit"]
TRUNCATED = json.dumps(ENCODER.to_dict())[:-20]
A_RUN = json.dumps({"kind": "dasvit/retrain/1", "config": {}})
A_MALFORMED_RUN = json.dumps({"kind": "dasvit/search/2", "config": {"colour": "blue"}})

USED = ("used/config.json",)

# What the error holds, the command line (SEARCH and VIT stand for those above), and a file that is
# there with its content.
BAD = [
    ("unknown preset 'mnist'", "search --preset mnist"),
    ("unknown preset 'mnist'", "retrain --preset=mnist"),
    ("unknown preset 'mnist'", "complexity --preset mnist"),
    ("unknown operation 'pool_k3'", "SEARCH --operations zero pool_k3 --stage-ops 2 2"),
    ("stage_ops=(8, 3) with 2", "SEARCH --operations zero identity"),
    ("unknown data set 'mnist'", "SEARCH --dataset mnist"),
    ("unknown data set 'mnist'", "VIT --dataset mnist"),
    ("but got 0.0", "SEARCH --token-ratio 0"),
    ("but got 1.5", "SEARCH --token-ratio 1.5"),
    ("but got -0.5", "SEARCH --token-ratio -0.5"),
    ("but got nan", "SEARCH --token-ratio nan"),
    ("(gamma_min=0.9, gamma_max=0.5)", "SEARCH --gamma-min 0.9"),
    ("heads do not divide the width dim=50", "SEARCH --dim 50"),
    ("(vit_heads=5, dim=12)", "VIT --vit-heads 5"),
    ("but got -0.1", "SEARCH --xi -0.1"),
    ("but got -1", "SEARCH --seed -1"),
    ("patch_size=3, image_size=8", "SEARCH --patch-size 3"),
    ("(warmup_epochs=9, epochs=2)", "VIT --warmup-epochs 9"),
    ("'cifar10' needs --data-dir", "SEARCH --dataset cifar10"),
    ("no folder nowhere", "SEARCH --dataset cifar10 --data-dir nowhere"),
    (
        "used lacks train-images-idx3",
        "SEARCH --dataset fashion_mnist --data-dir used",
        "used/a",
        "",
    ),
    ("of 100 of 100 classes", "SEARCH --dataset imagenet100 --data-dir used", "used/a", ""),
    (
        "cifar10 in data is missing or corrupt",
        "SEARCH --dataset cifar10 --data-dir data",
        "data/cifar-10-batches-py/data_batch_1",
        "truncated",
    ),
    ("cannot import 'no_such_plugin'", "SEARCH --plugins no_such_plugin"),
    ("device 'cuda:99' is not there", "SEARCH --device cuda:99"),
    ("but got 'tpu'", "SEARCH --device tpu"),
    ("used holds something else", "SEARCH --out used", "used/photos.json", "{}"),
    ("used holds something else", "VIT --out used", "used/photos.json", "{}"),
    ("used holds a run already", "SEARCH --out used", "used/config.json", A_RUN),
    ("used is a file", "SEARCH --out used", "used", "text"),
    ("cannot write to used/below", "SEARCH --out used/below", "used", "text"),
    ("no file nowhere/config.json", "search --resume nowhere"),
    ("no file nowhere/config.json", "retrain --resume nowhere"),
    ("used holds a retraining, continued by: dasvit retrain", "search --resume used", *USED, A_RUN),
    (
        "used holds a search, continued by: dasvit search ",
        "retrain --resume used",
        *USED,
        A_MALFORMED_RUN,
    ),
    ("is of kind 'dasvit/search/1'", "search --resume used", *USED, '{"kind": "dasvit/search/1"}'),
    ("--token-ratio belongs to method dasvit", "search --method darts --token-ratio 1"),
    ("--epochs changes nothing here", "complexity --epochs 3"),
    ("--alpha-lr changes nothing here", "memory --alpha-lr 3"),
    ("--zeta1 changes nothing here", "memory --zeta1 3"),
    ("unknown settings ['colour']", "search --resume used", *USED, A_MALFORMED_RUN),
    ("unknown model 'nonsense'", "VIT --model nonsense"),
    ("nowhere.json is neither", "VIT --model nowhere.json"),
    ("bad.json is not valid JSON", "VIT --model bad.json", "bad.json", TRUNCATED),
    ("no file nowhere/config.json", "evaluate nowhere --device cpu"),
    ("used holds a search", "evaluate used", "used/config.json", A_MALFORMED_RUN),
    ("unknown model 'nonsense'", "complexity --model nonsense"),
    ("dim=50", "complexity --model dasvit_cifar10 --dim 50"),
    ("bad.json is not valid JSON", "complexity --model bad.json", "bad.json", TRUNCATED),
    ("nonsense is neither", "draw nonsense"),
    ("used/genotype.json is neither", "draw used", "used/a", ""),
    ("bad.json is not valid JSON", "draw bad.json", "bad.json", TRUNCATED),
    ("cannot write used/a", "draw dasvit_cifar10 --out used/a", "used", "text"),
    ("cannot import 'no_such_plugin'", "draw x --plugins no_such_plugin"),
    ("unknown command 'serach'; did you mean search?", "serach --preset digits"),
    ("unknown option --datset; did you mean --dataset?", "search --datset digits"),
    ("--dim: invalid int value: 'wide'", "retrain --dim wide"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[1]}: {case[0]}")
def test_bad_input_is_one_line(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, case: tuple
) -> None:
    """The value, exit status 2, nothing computed, nothing written."""
    fragment, words, *file = case
    if file:
        path, content = workdir / file[0], file[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    before = files_of(workdir)

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("dasvit.search.step.BilevelStep.__call__", never)
    monkeypatch.setattr("dasvit.training.loop.Training.epoch", never)
    start = {"SEARCH": SEARCH, "VIT": VIT}
    first, *rest = words.split()
    done = call(*start.get(first, [first]), *rest)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert fragment in done.err
    assert files_of(workdir) == before


def test_damaged_files_of_a_run_are_one_line(workdir: Path, call: Callable[..., Done]) -> None:
    for argv, name in ((SEARCH, "search"), (VIT, "retrain")):
        assert call(*argv, "--out", name).code == 0
        weights = workdir / name / "model" / "model.safetensors"
        checkpoint = workdir / name / "checkpoint.pt"
        if weights.exists():
            weights.write_bytes(weights.read_bytes()[:-10])
            done = call("evaluate", name, "--device", "cpu")
            assert done.code == 2
            assert re.fullmatch(
                rf"error: {name}/model/model\.safetensors .* truncated .*\n", done.err
            )
        (workdir / name / "result.json").unlink()
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        done = call(name, "--resume", name, "--device", "cpu")
        assert done.code == 2
        assert re.fullmatch(rf"error: {name}/checkpoint\.pt is not a readable .*\n", done.err)
        assert len(checkpoint.read_bytes()) == 1000


@pytest.mark.parametrize(
    ("command", "argv", "folder"),
    [
        ("search", SEARCH, "runs/search-digits-seed0"),
        ("retrain", VIT, "runs/retrain-digits-vit-seed0"),
    ],
)
def test_an_interrupt_names_the_way_on(
    workdir: Path,
    call: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    argv: list[str],
    folder: str,
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    module = {"search": "dasvit.search.loop", "retrain": "dasvit.training.loop"}[command]
    monkeypatch.setattr(f"{module}.{command}", interrupted)
    done = call(*argv)
    assert (done.code, done.err) == (130, "error: stopped, start again: nothing was begun\n")
    (workdir / folder).mkdir(parents=True)
    (workdir / folder / "config.json").write_text("{}")
    assert call(*argv).err == (
        f"error: stopped, continue with: python -m dasvit {command} --resume {folder}\n"
    )


def test_an_interrupted_search_goes_on(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very command that the error names; TensorBoard files and the trace go on."""

    def interrupt(self: Any, *kept: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dasvit.search.loop._Run, "_enter_next_stage", interrupt)
        done = call(*SEARCH)
    assert done.code == 130
    (command,) = re.findall(r"python -m dasvit (.*)\n", done.err)
    done = call(*command.split(), "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "epoch 1/2" not in done.out
    assert "epoch 2/2" in done.out
    rows = runs.rows_without_times(workdir / "runs" / "search-digits-seed0" / "alpha.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1]


def test_a_loss_that_is_not_finite_is_one_line(workdir: Path, call: Callable[..., Done]) -> None:
    done = call(*SEARCH, "--weight-lr", "1e25", "--grad-clip", "0")
    assert done.code == 1
    assert re.fullmatch(r"error: the loss .* not finite in epoch 0 .* weight_lr.*\n", done.err)


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


def test_errors_of_the_program_keep_their_traceback(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what a user can mend is one line."""

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("dasvit.search.loop.search", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(SEARCH)


@pytest.mark.parametrize(
    "arguments",
    [
        "-m dasvit complexity --help-all",
        "-m dasvit complexity --preset digits --no-latency",
        "tune/run_search.py --help-all",
    ],
)
def test_a_reader_that_goes_ends_it_quietly(arguments: str) -> None:
    """`python -m dasvit … | head -1`, and a reader that reads nothing."""
    for reader, unbuffered in (("head -1", ""), ("true", "1")):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} {arguments} | {reader}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
        assert done.stderr == ""


def test_a_refusal_of_a_real_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dasvit", "search", "--xi", "-1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: xi .*, but got -1\.0; 0 is the first-order .*\n", done.stderr)
    assert names_in(tmp_path) == []
