"""A retraining of two workers through Ray Train, of which one fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("one_ray_at_a_time"),
]

ROOT = Path(__file__).parents[2]
SECONDS = 240.0
"""For Ray to start and one trial; a worker that waits for another one waits half an hour."""

SWEEP = """
import sys
from pathlib import Path
from dasvit.data.config import DataConfig
from dasvit.training.config import RetrainConfig
from dasvit.spaces.cell.genotype import Edge, Genotype
from tune.cluster import connect
from tune.demand import Demand
folder = Path(sys.argv[1])
config = RetrainConfig(
    data=DataConfig(dataset="digits", image_size=8, augment="none"), dim=12, depth=2, patch_size=4,
    epochs=4, warmup_epochs=1, batch_size=512, plugins=("support.faulty_rank",),
)
Genotype(((Edge(0, "msa_h2"), Edge(1, "mlp_r3")), (Edge(1, "identity"), Edge(2, "brittle")))).save(
    folder / "genotypes" / "brittle.json"
)
with connect(None, dashboard=True):
    from tune.phases import retrain
    from tune.trial import RetrainSetup
    setup = RetrainSetup(
        retrain=config, genotypes_dir=folder / "genotypes",
        trials_dir=folder / "retrain", ray_dir=folder / "ray",
        demand=Demand(cpus=1, gpus=0.0, concurrent=1, workers=2),
    )
    retrain(setup, ["brittle"], range(1))
"""


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    return tmp_path / "retrain" / "brittle_seed_0"


def sweep(folder: Path, fault: str) -> str:
    """Run one retraining, or continue it; `fault` as in `faulty_rank`. What it printed."""
    (folder / "genotypes").mkdir(exist_ok=True)
    (folder / "fault").write_text(fault)
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}",
        "FAULT": str(folder / "fault"),
        "FAULT_AFTER": str(folder / "retrain" / "brittle_seed_0" / "checkpoint.pt"),
    }
    # Into a file: of a pipe, Ray's last processes would keep the other end.
    with (folder / "out").open("w+") as out:
        done = subprocess.run(
            [sys.executable, "-c", SWEEP, str(folder)],
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=SECONDS,
            env=os.environ | environment,
        )
    said = (folder / "out").read_text()
    assert done.returncode == 0, said
    return said


def times_fired(folder: Path) -> int:
    """How often a worker failed; a loss that is not a number is not counted."""
    path = folder / "fault.fired"
    return len(path.read_text().splitlines()) if path.exists() else 0


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("value once", "100 images in a row cannot be read any more"),
        ("nan", "the training loss is nan in epoch 1; the last checkpoint is kept"),
    ],
)
def test_an_error_that_would_come_again_ends_both(
    fault: str, message: str, tmp_path: Path, trial: Path
) -> None:
    """Without the cause, the same command goes on."""
    assert "1/1  brittle_seed_0  FAILED" in sweep(tmp_path, fault)
    assert read(trial / "error.json")["error"].startswith(message)
    assert torch.load(trial / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert times_fired(tmp_path) == (fault != "nan")
    assert not (trial / "result.json").exists()
    sweep(tmp_path, "")
    assert read(trial / "result.json")["num_processes"] == 2
    assert not (trial / "error.json").exists()


@pytest.mark.parametrize("fault", ["killed once", "memory once"])
def test_another_error_restarts_both(fault: str, tmp_path: Path, trial: Path) -> None:
    sweep(tmp_path, fault)
    assert read(trial / "result.json")["num_processes"] == 2
    assert not (trial / "error.json").exists()
    assert times_fired(tmp_path) == 1
    lines = (trial / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


def test_the_last_error_is_that_of_the_worker_that_failed(tmp_path: Path, trial: Path) -> None:
    sweep(tmp_path, "kernel")
    assert read(trial / "error.json")["error"] == "RuntimeError: no such kernel"
    assert times_fired(tmp_path) == 4  # three restarts
