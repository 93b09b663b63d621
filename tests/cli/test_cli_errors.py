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
from support.runs import ENCODER, files_of

import dasvit.search.loop
from dasvit.cli import main

ROOT = Path(__file__).parents[2]
VIT = [*RETRAIN, "--model", "vit"]
TRUNCATED = json.dumps(ENCODER.to_dict())[:-20]
A_RUN = json.dumps({"kind": "dasvit/retrain/1", "config": {}})
A_SEARCH = json.dumps({"kind": "dasvit/search/2", "config": {"colour": "blue"}})

USED = ("used/config.json",)

# What the error holds, the command line (SEARCH and VIT stand for those above), and a file that is
# there with its content.
BAD = [
    ("unknown command 'serach'; did you mean search?", "serach --preset digits"),
    ("unknown option --datset; did you mean --dataset?", "search --datset digits"),
    ("--dim: invalid int value: 'wide'", "retrain --dim wide"),
    ("unknown preset 'mnist'", "search --preset mnist"),
    ("unknown operation 'pool_k3'", "SEARCH --operations zero pool_k3 --stage-ops 2 2"),
    ("unknown data set 'mnist'", "VIT --dataset mnist"),
    ("but got nan", "SEARCH --token-ratio nan"),
    ("but got -1", "SEARCH --seed -1"),
    ("heads do not divide the width dim=50", "SEARCH --dim 50"),
    ("'cifar10' needs --data-dir", "SEARCH --dataset cifar10"),
    ("cannot import 'no_such_plugin'", "SEARCH --plugins no_such_plugin"),
    ("device 'cuda:99' is not there", "SEARCH --device cuda:99"),
    ("used holds something else", "SEARCH --out used", "used/photos.json", "{}"),
    ("used holds something else", "VIT --out used", "used/photos.json", "{}"),
    ("used holds a run already", "SEARCH --out used", "used/config.json", A_RUN),
    ("cannot write to used/below", "SEARCH --out used/below", "used", "text"),
    ("no file nowhere/config.json", "search --resume nowhere"),
    ("used holds a retraining, continued by: dasvit retrain", "search --resume used", *USED, A_RUN),
    ("used holds a search, continued by: dasvit search ", "retrain --resume used", *USED, A_SEARCH),
    ("is of kind 'dasvit/search/1'", "search --resume used", *USED, '{"kind": "dasvit/search/1"}'),
    ("unknown settings ['colour']", "search --resume used", *USED, A_SEARCH),
    ("--token-ratio belongs to method dasvit", "search --method darts --token-ratio 1"),
    ("--epochs changes nothing here", "complexity --epochs 3"),
    ("--alpha-lr changes nothing here", "memory --alpha-lr 3"),
    ("unknown model 'nonsense'", "VIT --model nonsense"),
    ("bad.json is not valid JSON", "VIT --model bad.json", "bad.json", TRUNCATED),
    ("no file nowhere/config.json", "evaluate nowhere --device cpu"),
    ("used holds a search", "evaluate used", *USED, A_SEARCH),
    ("unknown model 'nonsense'", "complexity --model nonsense"),
    ("dim=50", "complexity --model dasvit_cifar10 --dim 50"),
    ("latency_batch must be at least 1", "complexity --preset digits --latency-batch 0"),
    ("nonsense is neither", "draw nonsense"),
    ("used/genotype.json is neither", "draw used", "used/a", ""),
    ("cannot write used/a", "draw dasvit_cifar10 --out used/a", "used", "text"),
    ("--budget must be like 24GiB", "memory --budget lots"),
    ("plot must be a path that can be written to", "memory --plot used/x", "used", ""),
    ("leave budget and plot out", "memory --check --budget 1GiB"),
    ("leave compile and cuda_graph out", "memory --check --cuda-graph"),
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
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
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


def test_an_interrupt_names_the_way_on(
    workdir: Path, call: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dasvit.training.loop.retrain", interrupted)
    done = call(*VIT)
    assert (done.code, done.err) == (130, "error: stopped, start again: nothing was begun\n")
    (workdir / "runs/retrain-digits-vit-seed0").mkdir(parents=True)
    (workdir / "runs/retrain-digits-vit-seed0/config.json").write_text("{}")
    assert call(*VIT).err.endswith(" retrain --resume runs/retrain-digits-vit-seed0\n")


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
    ("arguments", "reader", "unbuffered"),
    [
        ("-m dasvit complexity --preset digits --no-latency", "true", ""),
        ("-m dasvit complexity --preset digits --no-latency", "true", "1"),
        ("tune/run_search.py --help-all", "head -1", ""),
    ],
)
def test_a_reader_that_goes_ends_it_quietly(arguments: str, reader: str, unbuffered: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {arguments} | {reader}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert done.stderr == ""
