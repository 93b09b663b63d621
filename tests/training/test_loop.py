"""Training from scratch: the data, the schedule, the single look at the test set, what is left."""

import json
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
from support.reference import cosine_lr
from support.retrain_runs import assert_same_run, weights_of
from support.runs import DIGITS, ENCODER, files_of, names_in, retrain_config

import dasvit.training.loop
from dasvit.data.datasets import load_data
from dasvit.data.splits import split_half
from dasvit.report.events import Event, RetrainEpoch, RetrainResult
from dasvit.report.record import load_retrain_result, read_trace
from dasvit.run.checkpoint import load_checkpoint
from dasvit.run.distributed import Processes
from dasvit.run.files import check_free_space
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.answers import answers_of
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import Training, evaluate, retrain
from dasvit.training.model_folder import RETRAIN_KIND as KIND
from dasvit.training.model_folder import load, load_retrain_config
from dasvit.training.networks import build_network

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.usefixtures("few_retrained")
def test_the_seed_decides(genotype_path: str, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(ord(name))
        retrain(retrain_config(model=genotype_path, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    heads = [weights_of(tmp_path / name)["head.weight"] for name in ("a", "c")]
    assert not torch.equal(*heads)


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
@pytest.mark.parametrize("kind", ["encoder", "vit", "test_vit", "test_resnet"])
def test_what_a_retraining_leaves(kind: str, genotype_path: str, tmp_path: Path) -> None:
    """Weights on disk are the trained ones, and give the accuracy of the result."""
    changes: dict[str, Any] = {"model": genotype_path if kind == "encoder" else kind, "epochs": 2}
    if kind == "test_vit":  # timm's patch size is 16
        changes |= {"data": replace(DIGITS, image_size=16)}
    config = retrain_config(**changes, channels_last=True)
    result = retrain(config, tmp_path)
    assert result == load_retrain_result(tmp_path / "result.json")
    expected = {"config.json", "checkpoint.pt", "train.jsonl", "model", "result.json"}
    expected |= {"genotype.json"} if kind == "encoder" else set()
    assert set(names_in(tmp_path)) == expected
    assert load_retrain_config(tmp_path) == config

    trained = load(tmp_path)
    assert not trained.model.training
    state = load_checkpoint(tmp_path / "checkpoint.pt", KIND)["model"]
    torch.testing.assert_close(dict(trained.model.state_dict()), dict(state), rtol=0, atol=0)
    assert result.num_params == sum(p.numel() for p in trained.model.parameters())
    assert result.model == config.model
    assert result.peak_memory_bytes and 100e6 < result.peak_memory_bytes < 50e9
    assert result.latency_seconds and 1e-5 < result.latency_seconds < 10
    tested = evaluate(tmp_path)
    assert (tested.accuracy, tested.top5_accuracy) == (result.test_top1, result.test_top5)
    assert tested.balanced_accuracy == result.balanced_accuracy
    assert tested.largest_class == result.largest_class
    assert tested.confusion == tuple(map(tuple, result.confusion))
    assert tested.class_names == tuple(result.class_names)
    assert 0 <= result.test_top1 <= result.test_top5 <= 1
    last = runs.rows_without_times(tmp_path / "train.jsonl")[-1]
    assert result.train_accuracy == last["train_accuracy"]
    data, facts = load_data(config.data, CPU), trained.facts
    assert (facts.mean, facts.std, facts.image_size) == (
        data.mean,
        data.std,
        config.data.image_size,
    )
    assert facts.class_names == data.class_names


@pytest.mark.usefixtures("few_retrained")
def test_the_average_is_what_is_tested_and_saved(tmp_path: Path) -> None:
    config = retrain_config(epochs=2)
    results = [retrain(config, tmp_path / "plain")]
    results.append(retrain(replace(config, ema_decay=0.9), tmp_path / "averaged"))
    plain, averaged = (
        load_checkpoint(tmp_path / name / "checkpoint.pt", KIND) for name in ("plain", "averaged")
    )
    torch.testing.assert_close(plain["model"], averaged["model"])  # it changes no training
    torch.testing.assert_close(dict(averaged["average"]), weights_of(tmp_path / "averaged"))
    assert not torch.equal(averaged["average"]["head.weight"], averaged["model"]["head.weight"])
    assert evaluate(tmp_path / "averaged").accuracy == results[1].test_top1 != results[0].test_top1


@pytest.mark.usefixtures("few_retrained")
def test_a_finished_retraining_returns_at_once(
    genotype_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrain_config(model=genotype_path, epochs=2)
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
        ({"accumulate": 5}, "accumulate must divide batch_size"),
        ({"warmup_epochs": 3}, "warmup_epochs < epochs must hold"),
        ({"warmup_lr": 1.0}, "warmup_lr <= lr must hold"),
        ({"patch_size": 3}, "patch_size must divide image_size"),
        ({"mixup": 0.5, "batch_size": 33}, "batch_size must be even"),
    ],
)
def test_settings_that_do_not_fit_each_other(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
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

TWO = """
import json, sys
from datetime import timedelta
import torch, torch.distributed as dist
from dasvit.run.settings import config_from_dict
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import retrain
torch.set_num_threads(1)
rank, store, settings, out = int(sys.argv[1]), *sys.argv[2:5]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                        timeout=timedelta(seconds=120))
events = []
config = config_from_dict(RetrainConfig, json.loads(settings))
result = retrain(config, out, report=events.append, resume=True)
assert len(events) == config.epochs + (rank == 0)  # the first one has the result too
print(json.dumps([result.test_top1, result.train_accuracy]))
dist.destroy_process_group()
"""


def two_processes(config: RetrainConfig, out: Path, store: Path) -> list[str]:
    settings = json.dumps(config_to_dict(config))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(store), settings, str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    done = [process.communicate(timeout=240) for process in processes]
    assert all(p.returncode == 0 for p in processes), done
    return [out for out, _ in done]


def test_two_processes_train_what_one_trains(genotype_path: str, tmp_path: Path) -> None:
    # Plain descent: Adam makes steps of rounding where a gradient is 0, as of the keys' biases.
    config = retrain_config(
        model=genotype_path,
        optimizer="sgd",
        lr=0.05,
        epochs=2,
        batch_size=64,
        accumulate=2,
        data=replace(DIGITS, augment="shift"),
    )
    one = retrain(config, tmp_path / "one")
    said = two_processes(config, tmp_path / "two", tmp_path / "store")
    assert said[0] == said[1]  # reduced over both
    folders = [tmp_path / name for name in ("one", "two")]
    counts = [load_retrain_result(folder / "result.json").num_processes for folder in folders]
    assert counts == [1, 2]
    torch.testing.assert_close(*map(weights_of, folders), rtol=1e-4, atol=1e-5)
    losses = [[row["train_loss"] for row in read_trace(f / "train.jsonl")] for f in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(one.test_top1 - json.loads(said[0])[0]) <= 2 / 360
    assert Genotype.load(tmp_path / "two" / "genotype.json") == ENCODER
