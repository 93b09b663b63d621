"""Two processes by torchrun, of which one fails: both end at once, with the reason of that one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.cli_calls import RETRAIN

from dasvit.run.distributed import launched_by_torchrun
from dasvit.spaces.cell.genotype import Edge, Genotype

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FAULTY = Genotype(
    ((Edge(0, "msa_h2"), Edge(1, "mlp_r0.5")), (Edge(1, "identity"), Edge(2, "brittle")))
)
PROMPTLY = 60.0
"""Seconds for two processes to start, train an epoch, and end; a sum waits for half an hour."""


def torchrun(folder: Path, fault: str, *options: str) -> tuple[int, str]:
    """Exit status and stderr of a retraining in `folder`/run; `fault` as in `faulty_rank`."""
    FAULTY.save(folder / "genotype.json")
    (folder / "fault").write_text(fault)
    argv = [
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "dasvit"),
        *(*RETRAIN, "--model", str(folder / "genotype.json"), "--out", str(folder / "run")),
        *("--plugins", "support.faulty_rank", "--epochs", "4", "--batch-size", "512", *options),
    ]
    environment = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}",
        "FAULT": str(folder / "fault"),
        "FAULT_AFTER": str(folder / "run" / "checkpoint.pt"),
    }
    process = subprocess.Popen(
        [sys.executable, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        _, error = process.communicate(timeout=PROMPTLY)
    finally:
        process.terminate()  # torchrun ends its processes; nothing, if it has ended
        process.wait()
    return process.returncode, error


def epochs_kept(folder: Path) -> int:
    return torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["epoch"]


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("value", "error: 100 images in a row cannot be read any more"),
        ("nan", "error: the training loss is nan in epoch 1"),
    ],
)
def test_all_end_with_the_line_of_the_first_to_fail(fault: str, line: str, tmp_path: Path) -> None:
    status, error = torchrun(tmp_path, fault)
    assert status != 0
    assert error.count("error: ") == 1 and line in error
    assert "Connection closed by peer" not in error  # what the other one saw
    assert epochs_kept(tmp_path) == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unreadable", "FileNotFoundError"),
        ("kernel", "RuntimeError: no such kernel"),
        ("killed", "SIGKILL"),
    ],
)
def test_so_do_they_at_other_errors(fault: str, words: str, tmp_path: Path) -> None:
    status, error = torchrun(tmp_path, fault)
    assert status != 0 and words in error
    assert epochs_kept(tmp_path) == 1


@pytest.mark.slow
def test_a_retraining_goes_on_where_one_process_failed(tmp_path: Path) -> None:
    assert torchrun(tmp_path, "value once")[0] != 0
    status, error = torchrun(tmp_path, "", "--resume", str(tmp_path / "run"))
    assert status == 0, error
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_processes"] == 2


def test_a_mistake_of_the_user_is_told_once(tmp_path: Path) -> None:
    status, error = torchrun(tmp_path, "", "--optimizer", "adamm")
    assert status != 0
    assert error.count("optimizer 'adamm' is unknown") == 1
    assert not (tmp_path / "run").exists()


def test_without_torchrun_there_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with launched_by_torchrun(CPU) as device:
        assert device is CPU and not torch.distributed.is_initialized()
