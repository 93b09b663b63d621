"""Training from scratch: the data, the schedule, the single look at the test set, what is left."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import runs
from support.cli_calls import RETRAIN
from support.reference import cosine_lr
from support.retrain_runs import weights_of
from support.runs import DIGITS, ENCODER, assert_same_state, files_of, retrain_config

import dasvit.training.loop
from dasvit.cli import parse_command
from dasvit.data.datasets import load_data
from dasvit.data.splits import split_half
from dasvit.report.events import Event, RetrainEpoch, RetrainResult
from dasvit.report.record import load_retrain_result, read_trace
from dasvit.run.checkpoint import load_checkpoint
from dasvit.run.distributed import Processes
from dasvit.run.files import check_free_space
from dasvit.run.settings import SettingError, config_to_dict
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.answers import answers_of
from dasvit.training.loop import Training, evaluate, retrain
from dasvit.training.model_folder import RETRAIN_KIND as KIND
from dasvit.training.model_folder import load
from dasvit.training.networks import build_network

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.usefixtures("few_retrained")
def test_warm_up_then_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        matrices, vectors = self.param_groups
        rates.append(matrices["lr"])
        assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.07, 0.0)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    events: list[Event] = []
    settings = {"weight_decay": 0.07, "decay_norms": False}
    config = retrain_config(epochs=4, warmup_epochs=2, lr=2e-3, warmup_lr=1e-6, **settings)
    retrain(config, tmp_path, report=events.append)
    expected = [cosine_lr(i, 16, lr=2e-3, warmup_steps=8, warmup_lr=1e-6) for i in range(16)]
    assert rates == pytest.approx(expected, rel=1e-14)
    epochs = [e for e in events if isinstance(e, RetrainEpoch)]
    assert [e.lr for e in epochs] == rates[3::4]
    assert [(e.epoch, e.total_epochs) for e in epochs] == [(i, 4) for i in range(4)]


class Counted:
    """A split that says how often it was read."""

    def __init__(self, split: Any) -> None:
        self.split, self.seeds = split, []

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, batch_size: int, *, seed: int | None = None, **options: Any) -> Any:
        self.seeds.append(seed)
        return self.split.batches(batch_size, seed=seed, **options)


def test_all_training_images_and_the_test_set_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.few_images(monkeypatch)
    load_few = dasvit.training.loop.load_data
    made = []

    def load_counted(*args: Any) -> Any:
        data = load_few(*args)
        made.append((Counted(data.train), Counted(data.test)))
        return replace(data, train=made[-1][0], test=made[-1][1])

    monkeypatch.setattr(dasvit.training.loop, "load_data", load_counted)
    events: list[Any] = []
    config = retrain_config(epochs=3)
    retrain(config, tmp_path, report=lambda e: events.append((type(e), len(made[0][1].seeds))))
    ((train, test),) = made
    assert len(train.seeds) == len(set(train.seeds)) == 3
    assert None not in train.seeds  # shuffled, never evaluated on
    assert test.seeds == [None]  # in order, not augmented, once
    assert events == [(RetrainEpoch, 0)] * 3 + [(RetrainResult, 1)]


def test_held_out_images_stand_for_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on the weight half of a search of that seed, tested on the other; never on the test
    set, which here has no images."""
    runs.few_images(monkeypatch)
    load_few = dasvit.training.loop.load_data
    whole = load_few(DIGITS, CPU)
    nothing = whole.test.subset(torch.arange(0))
    monkeypatch.setattr(
        dasvit.training.loop, "load_data", lambda *args: replace(load_few(*args), test=nothing)
    )
    used: list[Any] = []
    make = dasvit.training.loop.Training
    monkeypatch.setattr(
        dasvit.training.loop,
        "Training",
        lambda c, m, data, p: used.append(data) or make(c, m, data, p),
    )
    result = retrain(retrain_config(held_out=0.25, seed=3), tmp_path)
    weight_half, other_half = split_half(whole.train, 0.25, 3)
    (data,) = used
    assert torch.equal(data.train.images, weight_half.images)
    assert torch.equal(data.test.images, other_half.images)
    answers = answers_of(load(tmp_path).model, other_half)
    assert result.test_top1 == answers.accuracy
    assert "| held-out accuracy |" in (tmp_path / "model" / "README.md").read_text()


def test_balanced_classes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is N/(classes · N_c) for an image of class c: over all images every class adds the
    same where every image has the same loss."""
    data = load_data(DIGITS, CPU)
    few = torch.cat([(data.train.targets == c).nonzero()[: 3 * (c + 1), 0] for c in range(10)])
    data = replace(data, train=data.train.subset(few))
    config = retrain_config(class_weights="balanced")
    model = build_network(config, in_channels=1, num_classes=10)
    training = Training(config, model, data, Processes())
    labels = data.train.targets
    alike = training._loss(torch.zeros(len(labels), 10), labels, 0.0)
    assert alike.item() == pytest.approx(math.log(10), rel=1e-6)
    logits = torch.randn(len(labels), 10)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    by_class = torch.stack([each[labels == c].mean() for c in range(10)])
    assert training._loss(logits, labels, 0.0).item() == pytest.approx(by_class.mean().item())
    parts = [
        training._loss(x, y, 0.0) * len(y)
        for x, y in zip(logits.chunk(5), labels.chunk(5), strict=True)
    ]
    assert (sum(parts) / len(labels)).item() == pytest.approx(by_class.mean().item())


# --- What is left


@pytest.mark.usefixtures("few_retrained")
def test_the_seed_decides_and_the_average_is_tested_and_saved(tmp_path: Path) -> None:
    config = retrain_config(epochs=2)
    changes = {"plain": {}, "averaged": {"ema_decay": 0.9}, "other": {"seed": 1}}
    results = [retrain(replace(config, **c), tmp_path / name) for name, c in changes.items()]
    plain, averaged, other = (
        load_checkpoint(tmp_path / name / "checkpoint.pt", KIND) for name in changes
    )
    assert_same_state(plain["model"], averaged["model"])  # it changes no training
    assert not torch.equal(plain["model"]["head.weight"], other["model"]["head.weight"])
    torch.testing.assert_close(dict(averaged["average"]), weights_of(tmp_path / "averaged"))
    assert not torch.equal(averaged["average"]["head.weight"], averaged["model"]["head.weight"])
    assert evaluate(tmp_path / "averaged").accuracy == results[1].test_top1 != results[0].test_top1


@pytest.mark.usefixtures("few_retrained")
def test_a_finished_retraining_returns_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrain_config(epochs=2)
    result = retrain(config, tmp_path)
    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(dasvit.training.loop, "load_data", None)
        events: list[Event] = []
        assert retrain(config, tmp_path, resume=True, report=events.append) == result
        with pytest.raises(ValueError, match="holds a run already"):
            retrain(config, tmp_path)
        saved = config_to_dict(config)
        del saved["compile"]  # begun by a version that did not know this setting
        patch.setattr(dasvit.run.folder, "read_settings", lambda folder, kind: saved)
        assert retrain(config, tmp_path, resume=True) == result
    with pytest.raises(ValueError, match=r"lr: 0\.003 there, 0\.5 now"):
        retrain(replace(config, lr=0.5), tmp_path, resume=True)
    assert events == [] and files_of(tmp_path) == before


def test_evaluate_on_other_data(
    trained_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(DIGITS, CPU)

    def other(config: Any, device: Any) -> Any:
        assert config == replace(DIGITS, data_dir=str(tmp_path))
        return replace(data, class_names=data.class_names[::-1])

    monkeypatch.setattr(dasvit.training.loop, "load_data", other)
    with pytest.raises(ValueError, match=r"trained on other classes .* give the --data-dir"):
        evaluate(trained_encoder, data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"run folder: there is no file .*config\.json"):
        evaluate(tmp_path)


# --- Refusals


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dim": 0}, "dim .* 0"),
        ({"lr": 0.0}, "lr .* 0.0"),
        ({"dropout": 1.5}, "dropout .* 1.5"),
        ({"label_smoothing": math.nan}, "label_smoothing .* nan"),
        ({"accumulate": 5}, "accumulate must divide batch_size"),
        ({"warmup_epochs": 3}, "warmup_epochs=3, epochs=3"),
        ({"warmup_lr": 1.0}, "warmup_lr=1.0, lr=0.003"),
        ({"patch_size": 3}, "patch_size=3, image_size=8"),
        ({"mixup": 0.5, "batch_size": 33}, "batch_size must be even"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        retrain_config(**changes)


def test_too_little_disk_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, needed: int) -> None:
        check_free_space(folder, needed * 10**12)

    monkeypatch.setattr(dasvit.training.loop, "check_free_space", full)
    with pytest.raises(ValueError, match="its disk has"):
        retrain(retrain_config(), tmp_path / "run")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda"):
        retrain(retrain_config(), tmp_path / "run", device="gpu0")
    monkeypatch.setattr(dasvit.training.loop, "current_processes", lambda: Processes(count=5))
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 5 processes"):
        retrain(retrain_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("few_retrained")
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrain_config(epochs=4)

    def poison(event: Event) -> None:
        if isinstance(event, RetrainEpoch) and event.epoch == 1:
            cross_entropy = torch.nn.functional.cross_entropy
            patch.setattr(
                torch.nn.functional, "cross_entropy", lambda *a, **k: cross_entropy(*a, **k) * 1e39
            )

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            FloatingPointError, match=r"training loss is (inf|nan) in epoch 2.*smaller lr"
        ),
    ):
        retrain(config, tmp_path, report=poison)
    assert load_checkpoint(tmp_path / "checkpoint.pt", KIND)["epoch"] == 2
    assert not (tmp_path / "result.json").exists()
    assert 0 <= retrain(config, tmp_path, resume=True).test_top1 <= 1


# --- Several processes


def test_two_processes_train_what_one_trains(genotype_path: str, tmp_path: Path) -> None:
    folders = one, two = tmp_path / "one", tmp_path / "two"
    # Plain descent: Adam makes steps of rounding where a gradient is 0, as of the keys' biases.
    argv = [
        *(*RETRAIN, "--model", genotype_path, "--optimizer", "sgd", "--lr", "0.05"),
        *("--batch-size", "64", "--accumulate", "2", "--augment", "shift", "--out", str(two)),
    ]
    retrain(parse_command(argv).args.retrain, one)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "dasvit", *argv],
        env=environment,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    results = [load_retrain_result(folder / "result.json") for folder in folders]
    assert [result.num_processes for result in results] == [1, 2]
    assert abs(results[0].test_top1 - results[1].test_top1) <= 2 / 360
    torch.testing.assert_close(*map(weights_of, folders), rtol=1e-4, atol=1e-5)
    losses = [[row["train_loss"] for row in read_trace(f / "train.jsonl")] for f in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert Genotype.load(two / "genotype.json") == ENCODER
