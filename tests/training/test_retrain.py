"""Training from scratch: schedule, the single look at the test set, weights, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dasvit.training.trained
import pytest
import safetensors.torch
import torch
from dasvit.training.optim import cosine_lr
from dasvit.training.trained import RETRAIN_KIND as KIND
from dasvit.training.trained import evaluate, load_model, load_retrain_config, topk_accuracy
from support import runs
from support.retrain_runs import assert_same_run
from support.runs import DIGITS, ENCODER, files_of, names_in, retrain_config
from torch import nn

import dasvit.run.folder
import dasvit.training.loop
from dasvit.data.datasets import load_data
from dasvit.report.events import Event, RetrainEpoch, RetrainResult
from dasvit.report.record import load_retrain_result
from dasvit.run.checkpoint import load_checkpoint
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.genotype import Genotype
from dasvit.spaces.cell.network import DASViT
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import check_retrain, retrain
from dasvit.training.networks import build_model

CPU = torch.device("cpu")


@pytest.mark.usefixtures("few_retrained")
def test_the_seed_decides(genotype_path: str, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(ord(name))
        retrain(retrain_config(model=genotype_path, seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    tensors = [
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("a", "c")
    ]
    assert not torch.equal(tensors[0]["head.weight"], tensors[1]["head.weight"])


# --- Schedule, data, the test set


@pytest.mark.usefixtures("few_retrained")
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
    runs.few_images(monkeypatch, dasvit.training.loop)
    load = dasvit.training.loop.load_data
    made = []

    def load_counted(*args: Any) -> Any:
        data = load(*args)
        made.append((Counted(data.train), Counted(data.test)))
        return replace(data, train=made[-1][0], test=made[-1][1])

    monkeypatch.setattr(dasvit.training.loop, "load_data", load_counted)
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


@pytest.mark.usefixtures("few_retrained")
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


@pytest.mark.usefixtures("few_retrained")
def test_top5_of_fewer_than_five_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = dasvit.training.loop.load_data

    def three_classes(*args: Any) -> Any:
        data = load(*args)
        for split in (data.train, data.test):
            split.labels.remainder_(3)
        return replace(data, class_names=("a", "b", "c"))

    monkeypatch.setattr(dasvit.training.loop, "load_data", three_classes)
    result = retrain(retrain_config(epochs=2), tmp_path)
    assert result.test_top5 == 1.0
    model, _ = load_model(tmp_path, CPU)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


# --- Files and the trained model


@pytest.mark.usefixtures("few_retrained")
@pytest.mark.parametrize("kind", ["encoder", "vit", "test_vit", "test_resnet"])
def test_round_trip(kind: str, genotype_path: str, tmp_path: Path) -> None:
    """Weights on disk are the trained ones, and give the accuracy of the result."""
    changes: dict[str, Any] = {"model": genotype_path if kind == "encoder" else kind, "epochs": 2}
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
    data = dasvit.training.loop.load_data(config.data, CPU)
    assert facts == {
        "class_names": [str(i) for i in range(10)],
        "in_channels": 1,
        "mean": list(data.mean),
        "std": list(data.std),
    }


@pytest.mark.usefixtures("few_retrained")
def test_a_model_outlives_the_genotype_file_it_was_trained_from(
    genotype_path: str, tmp_path: Path
) -> None:
    path = tmp_path / "genotype.json"
    shutil.copy(genotype_path, path)
    result = retrain(retrain_config(model=str(path), epochs=2), tmp_path / "run")
    path.unlink()
    model, _ = load_model(tmp_path / "run", CPU)
    assert isinstance(model, DASViT)
    assert model.genotype == ENCODER
    assert Genotype.load(tmp_path / "run" / "genotype.json") == ENCODER
    assert evaluate(tmp_path / "run") == (result.test_top1, result.test_top5)


@pytest.fixture
def finished(few_retrained: None, genotype_path: str, tmp_path: Path) -> Path:
    """The folder of a finished retraining."""
    retrain(retrain_config(model=genotype_path, epochs=2), tmp_path / "run")
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
    finished: Path, genotype_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(finished)
    monkeypatch.setattr(dasvit.training.loop, "load_data", None)
    config = load_retrain_config(finished)
    events: list[Event] = []
    result = retrain(config, finished, resume=True, report=events.append)
    assert result == load_retrain_result(finished / "result.json")
    assert events == []
    with pytest.raises(ValueError, match="holds a run already"):
        retrain(config, finished)
    with monkeypatch.context() as patch:  # begun by a version that did not know this setting
        saved = config_to_dict(config)
        del saved["compile"]
        patch.setattr(dasvit.run.folder, "read_settings", lambda folder, kind: saved)
        assert retrain(config, finished, resume=True) == result
    with pytest.raises(ValueError, match=r"lr: 0\.003 there, 0\.5 now"):
        retrain(replace(config, lr=0.5), finished, resume=True)
    assert files_of(finished) == before


@pytest.mark.usefixtures("few_retrained")
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


def test_models_by_name(genotype_path: str) -> None:
    for name, kind in (("dasvit_cifar10", DASViT), (genotype_path, DASViT)):
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
    load = dasvit.training.trained.load_data

    def watched(config: Any, device: Any) -> Any:
        seen.append(config)
        return load(config, device)

    monkeypatch.setattr(dasvit.training.trained, "load_data", watched)
    evaluate(finished, data_dir=str(tmp_path))
    assert seen == [replace(DIGITS, data_dir=str(tmp_path))]
