"""The whole command: bad input, and sweeps with a real Ray."""

import contextlib
import csv
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import safetensors.torch
import torch
from ray.tune import ExperimentAnalysis
from support.sweep_process import BASE, ROOT, SCRIPT, SweepProcess

from dasvit.report.record import load_retrain_result
from dasvit.spaces.cell.genotype import Genotype
from dasvit.spaces.cell.sample import distinct_random_genotypes
from dasvit.training.loop import evaluate
from tune.demand import Cluster
from tune.options import parse_options
from tune.run_search import _command, main
from tune.store import open_folder


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--dim 10", "10"),
        ("--retrain.dim 10", "dim=10"),
        ("--seeds 0", "seeds must lie in [1, 100000], but got 0"),
        ("--preset cifar10 --data-dir corrupt", "corrupt"),
        ("--preset cifar10 --dataset digits --image-size 224", "--gpus-per-trial 0"),
        ("--gpus-per-trial 99", "--gpus-per-trial 99: this machine has"),
        ("--address 127.0.0.1:9", "--address 127.0.0.1:9: nobody answers there"),
        ("--callback nowhere.py:mine", "--callback nowhere.py:mine: there is no file"),
        ("--space own.py:space", "'lambda' is not a setting that a sweep varies; known: token_"),
        ("--storage-path file", "--storage-path: cannot write to"),
        ("--storage-path other --name thesis", "holds something else (text.tex)"),
        ("--resume", "--resume: "),
        ("--plugins no_such_module", "no_such_module"),
        # The settings of L2 do nothing while its weight is fixed at 0: nothing is left to vary.
        ("--token-ratio 1 --skip-weight 1 --type-weight 0 --xi 0", "nothing to sweep"),
        ("--cuda-graph --gpus-per-trial 0", "cuda_graph needs a GPU, but the device is cpu"),
        ("--compile --gpus-per-trial 0", "compile needs a compiler (no-such-compiler)"),
        (
            "--search random --operations zero msa_h2 --stage-ops 2 2 2 --num-nodes 1",
            "16 distinct random encoders were asked for",
        ),
    ],
)
def test_bad_input(
    argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the value, exit status 2, before Ray starts; nothing made or changed."""
    Path("file").write_text("not a folder")
    Path("own.py").write_text(
        "from ray import tune\ndef space(search, fixed):\n"
        "    return {'lambda': tune.uniform(0.1, 0.9)}\n"
    )
    Path("other/thesis").mkdir(parents=True)
    Path("other/thesis/text.tex").write_text("mine")
    Path("corrupt/cifar-10-batches-py").mkdir(parents=True)
    Path("corrupt/cifar-10-batches-py/data_batch_1").write_bytes(b"\0" * 10)
    before = sorted(tmp_path.rglob("*"))
    assert main(argv.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    # A space is imported, and Python keeps what it compiles.
    left = [p for p in tmp_path.rglob("*") if p not in before and "__pycache__" not in p.parts]
    assert [path for path in left if path.is_file()] == []
    assert Path("other/thesis/text.tex").read_text() == "mine"


def test_fresh_sets_the_old_sweep_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is known that the new one can run; a disk that is full then is one line, with the
    command that continues."""
    here = Cluster(address="local", cpus=2.0, gpus=0.0, node_cpus=2.0, node_gpus=0.0, nodes=1)
    times: list[None] = []

    @contextlib.contextmanager
    def connect_once(address: str | None, **options: bool) -> Iterator[Cluster]:
        times.append(None)
        if len(times) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")
        yield here

    monkeypatch.setattr("tune.phases.connect", connect_once)
    root = tmp_path / "runs" / "digits"
    folder = open_folder("runs", "digits", {"other": 1})
    folder.write({"settings": {"other": 1}})
    assert main(["--num-samples", "2"]) == 2
    assert "holds a sweep with other settings" in capsys.readouterr().err
    assert main(["--num-samples", "2", "--fresh", "--cpus-per-trial", "99"]) == 2
    assert "--cpus-per-trial 99" in capsys.readouterr().err
    assert list(root.parent.iterdir()) == [root]

    times.clear()
    assert main(["--num-samples", "2", "--fresh"]) == 1
    shown = capsys.readouterr()
    (aside,) = root.parent.iterdir()
    assert aside.name.startswith("digits-") and (aside / "sweep.json").exists()
    assert f"the sweep that was there is now {aside}" in shown.out
    assert shown.err == (
        "error: file: No space left on device; after that, continue with: "
        f"{_command(['--num-samples', '2'])}\n"
    )


def test_the_command_works_where_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the checkout by the whole path; inside it, and with this Python first, as short as
    the docs have it."""
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _command(["--name", "a b", "--fresh"]) == f"{sys.executable} {SCRIPT} --name 'a b'"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.chdir(ROOT)
    assert _command([]) == "python tune/run_search.py"


TINY = [
    *BASE,
    *("--name", "tiny", "--stage-epochs", "1", "--batch-size", "240"),
    *("--retrain.epochs", "2", "--retrain.batch-size", "240"),
]


def swept(folder: Path, *argv: str, **environment: str) -> SweepProcess:
    """A sweep in a process of its own, to its end."""
    sweep = SweepProcess(folder, [*TINY, *argv], **environment)
    assert sweep.wait(280) == 0, sweep.error
    return sweep


def leaderboard(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((root / "leaderboard.csv").read_text().splitlines()))


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_ray_at_a_time")
def test_a_sweep_from_end_to_end(tmp_path: Path) -> None:
    options = ("--random-baseline", "1")
    sweep = swept(tmp_path, *options)
    assert (sweep.error, sweep.left_behind()) == ("", [])
    root = tmp_path / "runs" / "tiny"
    search = [root / "search" / f"config_000_seed_{seed}" for seed in (0, 1)]
    results = [json.loads((folder / "result.json").read_text()) for folder in search]
    # What ranks is the short training of what each search found, on the images of its own halves.
    scores: dict[str, list[float]] = {}
    for folder, result in zip(search, results, strict=True):
        short = json.loads((folder / "short_training" / "result.json").read_text())
        assert short["num_tested"] == 718
        scores.setdefault(result["genotype"]["hash"], []).append(short["balanced_accuracy"])
    assert results[0]["settings"]["token_ratio"] == 0.5
    # A random encoder climbs beside them; who ranks first is kept, and is usable.
    (drawn,) = distinct_random_genotypes(parse_options(TINY).plan.search.space, 1, seed=0)
    rung = root / "ladder" / "2_epochs"
    own = [rung / f"{drawn.canonical_hash}_seed_{seed}" / "result.json" for seed in (0, 1)]
    climbed = [json.loads(file.read_text())["balanced_accuracy"] for file in own]
    ranked = {drawn.canonical_hash: fmean(climbed)}
    ranked |= {name: fmean(values) for name, values in scores.items()}
    rows = leaderboard(root)
    best = rows[0]["model"]
    assert ranked[best] == max(ranked.values())
    assert {row["model"]: row["origin"] for row in rows} == {
        **dict.fromkeys(scores, "search"), drawn.canonical_hash: "random", "vit": "baseline",
    }  # fmt: skip
    assert Genotype.load(root / "best" / "genotype.json").canonical_hash == best
    assert evaluate(root / "best").accuracy == pytest.approx(float(rows[0]["test_top1_mean"]))
    assert not list(root.glob("ladder/*/*/checkpoint.pt"))
    assert not list(root.glob("search/*/short_training/checkpoint.pt"))
    for part in (
        "2 trials at a time",
        "--preset cifar10 --data-dir DIR",
        "search 2/2",
        "ladder, rung 1 of 1: 2 networks × 2 seeds, 2 epochs each",
        f"best encoder {best}, ",
        "python -m dasvit predict --model ",
    ):
        assert part in sweep.output

    # What is left for others to read: the record, TensorBoard's files, Ray's own record.
    record = json.loads((root / "sweep.json").read_text())
    assert record["settings"]["num_samples"] == 1
    assert {"search", "ladder", "retraining"} <= set(record["runs"][0]["wall_seconds"])
    for folder in (*search, root / "retrain" / f"{best}_seed_0"):
        assert list(folder.glob("events.out.tfevents.*")), folder
    (ray_dir,) = (root / "ray").iterdir()
    found = ExperimentAnalysis(str(ray_dir / "search"))
    assert {config["seed"] for config in found.get_all_configs().values()} == {0, 1}
    for frame in found.trial_dataframes.values():
        assert frame["epoch"].dropna().tolist() == [1, 2, 3]
        assert frame["supernet_accuracy"].notna().all() and frame["finished"].iloc[-1] == 1
        assert frame["trained_accuracy"].notna().iloc[-1]

    # The same command returns the finished result; other settings are refused.
    before = {path: path.read_bytes() for path in root.glob("*/*/**/result.json")}
    text = (root / "leaderboard.md").read_text()
    assert main([*TINY, *options]) == 0
    assert main([*TINY, *options, "--seed", "5"]) == 2
    assert (root / "leaderboard.md").read_text() == text
    # With more samples and seeds it is extended: what is there stays. A terminal that cannot show
    # a character ends nothing.
    more = ("--num-samples", "2", "--retrain-seeds", "2")
    assert "?" in swept(tmp_path, *options, *more, PYTHONIOENCODING="ascii").output
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(root.glob("search/*/result.json"))) == 4
    assert len(list(root.glob("retrain/vit_*/result.json"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_ray_at_a_time")
def test_a_random_search_retrained_by_one_and_by_two_workers(tmp_path: Path) -> None:
    """Through Ray Train, with plain descent: Adam makes steps of rounding where a gradient is 0."""
    weights = []
    for workers in (1, 2):
        storage = tmp_path / str(workers)
        swept(
            tmp_path,
            *("--storage-path", str(storage), "--workers", str(workers)),
            *("--search", "random", "--num-samples", "2", "--seeds", "1"),
            *("--retrain.optimizer", "sgd"),
        )
        [folder] = (storage / "tiny" / "retrain").glob("vit_seed_*")
        assert load_retrain_result(folder / "result.json").num_processes == workers
        weights.append(safetensors.torch.load_file(folder / "model" / "model.safetensors"))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)

    root = tmp_path / "1" / "tiny"
    drawn = distinct_random_genotypes(parse_options(TINY).plan.search.space, 2, seed=0)
    *encoders, vit = leaderboard(root)
    assert {row["model"] for row in encoders} == {genotype.canonical_hash for genotype in drawn}
    assert vit["origin"] == "baseline"
    scores = [float(row["rung_2_epochs_mean"]) for row in encoders]
    assert scores == sorted(scores, reverse=True)
    best = Genotype.load(root / "best" / "genotype.json").canonical_hash
    assert best == encoders[0]["model"]
    assert not (root / "search").exists() and (root / "report.html").exists()
