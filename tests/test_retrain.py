"""Training from scratch: exact restart, schedule, the single look at the test set, weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runs
import safetensors.torch
import torch
from runs import DIGITS, ENCODER, CrashError, files_of, names_in, retrain_config
from torch import nn

import dasvit.retrain
import dasvit.trained
from dasvit.checkpoint import load_checkpoint
from dasvit.config import RetrainConfig
from dasvit.data import load_data
from dasvit.genotype import Genotype
from dasvit.metrics import Event, RetrainEpoch, RetrainResult
from dasvit.models import build_model
from dasvit.network import DASViT
from dasvit.optim import cosine_lr
from dasvit.retrain import check_retrain, retrain
from dasvit.trace import load_retrain_result, read_trace
from dasvit.trained import RETRAIN_KIND as KIND
from dasvit.trained import evaluate, load_model, load_retrain_config, topk_accuracy

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 training images, four steps an epoch; 60 test images."""
    runs.few_images(monkeypatch, dasvit.retrain)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a genotype file."""
    path = tmp_path_factory.mktemp("genotype") / "genotype.json"
    ENCODER.save(path)
    return str(path)


def assert_same_run(left: Path, right: Path) -> None:
    """Two finished retrainings are equal in all but wall times."""
    runs.assert_same_checkpoint(left, right, KIND)
    assert runs.rows_without_times(left / "train.jsonl") == runs.rows_without_times(
        right / "train.jsonl"
    )
    files = [(folder / "model.safetensors").read_bytes() for folder in (left, right)]
    assert files[0] == files[1]
    results = [load_retrain_result(folder / "result.json") for folder in (left, right)]
    left_result, right_result = (replace(r, seconds=0, peak_memory_bytes=None) for r in results)
    assert left_result == right_result


# --- Exact restart


def crash_before_checkpoint(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    return runs.crash_at(lambda event: isinstance(event, RetrainEpoch) and event.epoch == epoch)


def crash_after_checkpoint(
    monkeypatch: pytest.MonkeyPatch, epoch: int
) -> Callable[[Event], None] | None:
    save = dasvit.retrain.save_checkpoint

    def save_and_crash(path: Path, kind: str, state: dict[str, Any]) -> None:
        save(path, kind, state)
        if state["epoch"] == epoch + 1:
            raise CrashError

    monkeypatch.setattr(dasvit.retrain, "save_checkpoint", save_and_crash)
    return None


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("crash", [crash_before_checkpoint, crash_after_checkpoint])
@pytest.mark.parametrize("model", ["encoder", "vit", "test_resnet"])
def test_killed_in_every_epoch_and_resumed(
    model: str, crash: Callable, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and moving crops; `test_resnet` has running statistics."""
    config = retrain_config(
        model=encoder if model == "encoder" else model,
        dropout=0.2,
        label_smoothing=0.1,
        data=replace(DIGITS, augment="crop_flip"),
        epochs=2 if model == "test_resnet" else 3,
        grad_clip=1.0,
    )
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    retrain(config, expected)
    for epoch in range(config.epochs):
        with monkeypatch.context() as patch, pytest.raises(CrashError):
            retrain(config, folder, report=crash(patch, epoch) or (lambda e: None), resume=True)
        torch.rand(epoch + 1)  # another process has another random state
        if crash is crash_before_checkpoint:  # one more epoch, so that the next crash comes later
            with monkeypatch.context() as patch:
                crash_after_checkpoint(patch, epoch)
                with pytest.raises(CrashError):
                    retrain(config, folder, resume=True)
        assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == epoch + 1
        assert not (folder / "model.safetensors").exists()
    result = retrain(config, folder, resume=True)
    assert_same_run(folder, expected)
    rows = read_trace(folder / "train.jsonl")
    assert [row["epoch"] for row in rows] == list(range(config.epochs))
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows))


@pytest.mark.usefixtures("few")
def test_killed_between_sparse_checkpoints_and_resumed(tmp_path: Path) -> None:
    config = retrain_config(model="vit", epochs=3, checkpoint_epochs=2)
    retrain(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    for epoch, kept in [(0, None), (1, None), (2, 2)]:
        crash = runs.crash_at(lambda e, n=epoch: isinstance(e, RetrainEpoch) and e.epoch == n)
        with pytest.raises(CrashError):
            retrain(config, folder, report=crash, resume=True)
        assert (folder / "checkpoint.pt").exists() == (kept is not None)
        if kept is not None:
            assert load_checkpoint(folder / "checkpoint.pt", KIND)["epoch"] == kept
    retrain(config, folder, resume=True)
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.usefixtures("few")
def test_killed_before_the_result_and_resumed(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrain_config(model=encoder)
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    retrain(config, expected)

    def crash(path: Path, result: RetrainResult) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(dasvit.retrain, "save_result", crash)
        with pytest.raises(CrashError):
            retrain(config, folder)
    events: list[Event] = []
    retrain(config, folder, resume=True, report=events.append)
    assert_same_run(folder, expected)
    assert [type(e) for e in events] == [RetrainResult]


@pytest.mark.timeout(900)  # processes that start: seconds, minutes on a busy machine
def test_sigkill_within_an_epoch(tmp_path: Path) -> None:
    """A real process on the full digits; resumed in this one."""
    expected, folder = tmp_path / "whole", tmp_path / "killed"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        *(sys.executable, "-m", "dasvit", "retrain", "--device", "cpu"),
        *("--model", "vit", "--dim", "12", "--depth", "1", "--patch-size", "4"),
        *("--epochs", "8", "--warmup-epochs", "1", "--batch-size", "16", "--lr", "3e-3"),
        *("--dropout", "0.1", "--grad-clip", "0", "--augment", "none", "--out", str(folder)),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    trace, deadline = folder / "train.jsonl", time.monotonic() + 400
    try:
        while not (trace.exists() and trace.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "result.json").exists()
    config = load_retrain_config(folder)
    assert (config.epochs, config.batch_size, config.dropout) == (8, 16, 0.1)
    for each, resume in ((folder, True), (expected, False)):
        retrain(config, each, resume=resume)
    assert_same_run(folder, expected)


@pytest.mark.usefixtures("few")
def test_the_seed_decides(encoder: str, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(ord(name))
        retrain(retrain_config(model=encoder, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    tensors = [
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("a", "c")
    ]
    assert not torch.equal(tensors[0]["head.weight"], tensors[1]["head.weight"])


# --- Schedule, data, the test set


@pytest.mark.usefixtures("few")
def test_warm_up_then_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        (group,) = self.param_groups
        rates.append(group["lr"])
        assert group["weight_decay"] == 0.07
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    events: list[Event] = []
    config = retrain_config(epochs=4, warmup_epochs=2, lr=2e-3, warmup_lr=1e-6, weight_decay=0.07)
    retrain(config, tmp_path, report=events.append)
    assert rates == [cosine_lr(i, 16, lr=2e-3, warmup_steps=8, warmup_lr=1e-6) for i in range(16)]
    assert rates[0] == 1e-6
    assert rates[8] == 2e-3
    assert max(rates) == 2e-3
    assert 0 < rates[15] < 1e-4
    epochs = [e for e in events if isinstance(e, RetrainEpoch)]
    assert [e.lr for e in epochs] == [rates[3], rates[7], rates[11], rates[15]]
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
    runs.few_images(monkeypatch, dasvit.retrain)
    load = dasvit.retrain.load_data
    made = []

    def load_counted(*args: Any) -> Any:
        data = load(*args)
        made.append((Counted(data.train), Counted(data.test)))
        return replace(data, train=made[-1][0], test=made[-1][1])

    monkeypatch.setattr(dasvit.retrain, "load_data", load_counted)
    events: list[Event] = []
    config = retrain_config(epochs=3)
    retrain(config, tmp_path, report=lambda e: events.append((e, len(made[0][1].seeds))) and None)
    ((train, test),) = made
    assert len(train.seeds) == len(set(train.seeds)) == 3
    assert None not in train.seeds  # shuffled, never evaluated on
    assert test.seeds == [None]  # in order, not augmented, once
    assert [(type(e), seen) for e, seen in events] == [(RetrainEpoch, 0)] * 3 + [(RetrainResult, 1)]
    retrain(config, tmp_path, resume=True)
    assert len(made) == 1  # a finished run does not look again


@pytest.mark.usefixtures("few")
def test_label_smoothing_and_clipping_reach_the_loss(tmp_path: Path) -> None:
    losses = []
    for i, changes in enumerate(({}, {"label_smoothing": 0.5}, {"grad_clip": 1e-6})):
        events: list[Event] = []
        config = retrain_config(epochs=2, warmup_epochs=0, weight_decay=0.0, **changes)
        retrain(config, tmp_path / str(i), report=events.append)
        losses.append([e.train_loss for e in events if isinstance(e, RetrainEpoch)])
    assert losses[0] != losses[1]
    assert losses[0] != losses[2]


def test_topk_accuracy_by_hand() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.arange(10.0))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            return self.bias.expand(len(images), 10)

    split = load_data(DIGITS, CPU).test
    labels = torch.cat([y for _, y in split.batches(100)])
    top1, top5 = topk_accuracy(Fixed(), split)
    assert top1 == pytest.approx((labels == 9).float().mean().item())
    assert top5 == pytest.approx((labels >= 5).float().mean().item())


@pytest.mark.usefixtures("few")
def test_top5_of_fewer_than_five_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = dasvit.retrain.load_data

    def three_classes(*args: Any) -> Any:
        data = load(*args)
        for split in (data.train, data.test):
            split.labels.remainder_(3)
        return replace(data, class_names=("a", "b", "c"))

    monkeypatch.setattr(dasvit.retrain, "load_data", three_classes)
    result = retrain(retrain_config(epochs=2), tmp_path)
    assert result.test_top5 == 1.0
    model, _ = load_model(tmp_path, CPU)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


# --- Files and the trained model


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", ["encoder", "vit", "test_vit", "test_resnet"])
def test_round_trip(kind: str, encoder: str, tmp_path: Path) -> None:
    """Weights on disk are the trained ones, and give the accuracy of the result."""
    changes: dict[str, Any] = {"model": encoder if kind == "encoder" else kind, "epochs": 2}
    if kind == "test_vit":  # timm's patch size is 16
        changes |= {"data": replace(DIGITS, image_size=16)}
    config = retrain_config(**changes)
    result = retrain(config, tmp_path)
    assert result == load_retrain_result(tmp_path / "result.json")
    expected = {"config.json", "checkpoint.pt", "train.jsonl", "model", "model.json"}
    expected |= {"model.safetensors", "result.json"}
    expected |= {"genotype.json"} if kind == "encoder" else set()
    assert set(names_in(tmp_path)) == expected
    assert load_retrain_config(tmp_path) == config

    model, loaded = load_model(tmp_path, CPU)
    assert loaded == config
    assert not model.training
    state = load_checkpoint(tmp_path / "checkpoint.pt", KIND)["model"]
    runs.assert_same_state(dict(model.state_dict()), dict(state))
    assert result.num_params == sum(p.numel() for p in model.parameters())
    assert result.model == config.model
    assert evaluate(tmp_path) == (result.test_top1, result.test_top5)
    assert 0 <= result.test_top1 <= result.test_top5 <= 1
    last = runs.rows_without_times(tmp_path / "train.jsonl")[-1]
    assert result.train_accuracy == last["train_accuracy"]

    facts = json.loads((tmp_path / "model.json").read_text())
    data = dasvit.retrain.load_data(config.data, CPU)
    assert facts == {
        "class_names": [str(i) for i in range(10)],
        "in_channels": 1,
        "mean": list(data.mean),
        "std": list(data.std),
    }


@pytest.mark.usefixtures("few")
def test_a_model_outlives_the_genotype_file_it_was_trained_from(
    encoder: str, tmp_path: Path
) -> None:
    path = tmp_path / "genotype.json"
    shutil.copy(encoder, path)
    result = retrain(retrain_config(model=str(path), epochs=2), tmp_path / "run")
    path.unlink()
    model, _ = load_model(tmp_path / "run", CPU)
    assert isinstance(model, DASViT)
    assert model.genotype == ENCODER
    assert Genotype.load(tmp_path / "run" / "genotype.json") == ENCODER
    assert evaluate(tmp_path / "run") == (result.test_top1, result.test_top5)


@pytest.fixture
def finished(few: None, encoder: str, tmp_path: Path) -> Path:
    """The folder of a finished retraining."""
    retrain(retrain_config(model=encoder, epochs=2), tmp_path / "run")
    return tmp_path / "run"


def test_truncated_weights_are_named(finished: Path) -> None:
    path = finished / "model.safetensors"
    content = path.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"does not fit its config\.json or is truncated") as e:
            load_model(finished, CPU)
        assert str(path) in str(e.value)
        assert "\n" not in str(e.value)
    path.write_bytes(b"not weights at all, but long enough to be a header")
    with pytest.raises(ValueError, match="is truncated"):
        evaluate(finished)
    path.unlink()
    with pytest.raises(ValueError, match="there are no weights"):
        load_model(finished, CPU)


def test_weights_of_another_network_are_refused(finished: Path) -> None:
    path = finished / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["head.weight"] = tensors["head.weight"][:5].contiguous()
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=r"does not fit its config\.json") as caught:
        load_model(finished, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("facts", ["{", "[]", "{}", '{"in_channels": 1}', '{"in_channels": "x"}'])
def test_a_malformed_model_json_is_refused(finished: Path, facts: str) -> None:
    (finished / "model.json").write_text(facts)
    with pytest.raises(ValueError, match=r"model\.json"):
        load_model(finished, CPU)


def test_a_folder_without_a_retraining_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run folder: there is no file .*config\.json"):
        evaluate(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "dasvit/search/1", "config": {}}')
    with pytest.raises(ValueError, match="is of kind 'dasvit/search/1', not 'dasvit/retrain/1'"):
        evaluate(tmp_path)


def test_a_finished_retraining_returns_at_once(
    finished: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(finished)
    monkeypatch.setattr(dasvit.retrain, "load_data", None)
    config = load_retrain_config(finished)
    events: list[Event] = []
    result = retrain(config, finished, resume=True, report=events.append)
    assert result == load_retrain_result(finished / "result.json")
    assert events == []
    with pytest.raises(ValueError, match="holds a run already"):
        retrain(config, finished)
    with pytest.raises(ValueError, match=r"lr: 0\.003 there, 0\.5 now"):
        retrain(replace(config, lr=0.5), finished, resume=True)
    assert files_of(finished) == before


@pytest.mark.usefixtures("few")
def test_norms_and_biases_are_spared_on_request(tmp_path: Path) -> None:
    for name, decay_norms in (("all", True), ("matrices", False)):
        config = retrain_config(epochs=2, lr=1e-2, weight_decay=9.0, decay_norms=decay_norms)
        retrain(config, tmp_path / name)
    gains = [
        load_model(tmp_path / name, torch.device("cpu"))[0].norm.weight.mean().item()
        for name in ("all", "matrices")
    ]
    assert gains[0] < 0.9 < gains[1]  # 1 at the start


# --- Models and refusals


def test_models_by_name(encoder: str) -> None:
    for name, kind in (("dasvit_cifar10", DASViT), (encoder, DASViT)):
        config = retrain_config(model=name, dim=24, depth=3)
        model = build_model(config, in_channels=1, num_classes=7)
        assert isinstance(model, kind)
        assert (len(model.cells), model.embed_dim) == (3, 24)
    vit = build_model(retrain_config(dim=24, depth=3, dropout=0.3), in_channels=2, num_classes=7)
    assert (len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.num_heads) == (3, 24, 3)
    assert vit.blocks[0].mlp.drop1.p == 0.3
    assert vit.patch_embed.num_patches == 4
    assert vit(torch.zeros(2, 2, 8, 8)).shape == (2, 7)
    resnet = build_model(retrain_config(model="test_resnet"), in_channels=1, num_classes=7)
    assert resnet(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"schema": "dasvit/genotype/1", "nodes": [')
    (tmp_path / "unknown.json").write_text(
        '{"schema": "dasvit/genotype/1", "nodes": [[{"source": 0, "operation": "pool_k3"}]]}'
    )
    bad: list[tuple[dict[str, Any], str]] = [
        ({"model": "no_such_model"}, "unknown model 'no_such_model'; give 'vit'"),
        ({"model": str(tmp_path / "missing.json")}, "missing.json is neither a shipped genotype"),
        ({"model": str(tmp_path / "broken.json")}, "broken.json is not valid JSON"),
        ({"model": str(tmp_path / "unknown.json")}, "unknown operation 'pool_k3'"),
        ({"model": "dasvit_cifar10", "dim": 12}, "msa_h8: 8 heads do not divide the width dim=12"),
        ({"dim": 60_000}, r"the network has [0-9.]+ G parameters, more than one device can train"),
        ({"vit_heads": 5}, r"vit_heads must divide dim, but got \(vit_heads=5, dim=12\)"),
        ({"data": replace(DIGITS, dataset="mnist")}, "unknown data set 'mnist'"),
        ({"plugins": ("no_such_plugin",)}, "cannot import 'no_such_plugin'"),
    ]
    for changes, message in bad:
        config = retrain_config(**changes)
        for refuse in (check_retrain, lambda config: retrain(config, tmp_path / "run")):
            with pytest.raises(ValueError, match=message):
                refuse(config)
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda"):
        retrain(retrain_config(), tmp_path / "run", device="gpu0")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("few")
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
        pytest.raises(FloatingPointError, match=r"the training loss is (inf|nan) in epoch 2") as e,
    ):
        retrain(config, tmp_path, report=poison)
    assert "smaller lr" in str(e.value)
    assert load_checkpoint(tmp_path / "checkpoint.pt", KIND)["epoch"] == 2
    assert not (tmp_path / "result.json").exists()
    assert 0 <= retrain(config, tmp_path, resume=True).test_top1 <= 1


def test_evaluate_on_another_folder(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[RetrainConfig] = []
    load = dasvit.trained.load_data

    def watched(config: Any, device: Any) -> Any:
        seen.append(config)
        return load(config, device)

    monkeypatch.setattr(dasvit.trained, "load_data", watched)
    evaluate(finished, data_dir=str(tmp_path))
    assert seen == [replace(DIGITS, data_dir=str(tmp_path))]
