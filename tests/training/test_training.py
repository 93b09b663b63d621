"""Recipes: accumulation, averages, mixing, stochastic depth, precision, several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dasvit.training.epochs
import pytest
import safetensors.torch
import torch
from dasvit.training.epochs import Training
from dasvit.training.optim import cosine_lr
from support import runs
from support.runs import DIGITS, ENCODER, CrashError, retrain_config
from torch import Tensor, nn

import dasvit.training.loop
from dasvit.data.datasets import load_data
from dasvit.presets import get_preset, modern
from dasvit.report.events import RetrainEpoch
from dasvit.report.record import load_retrain_result, read_trace
from dasvit.run.distributed import Processes
from dasvit.run.files import check_free_space
from dasvit.run.settings import config_to_dict
from dasvit.spaces.cell.edges import DerivedCell
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import check_retrain, retrain
from dasvit.training.networks import build_model
from dasvit.training.recipe import make_average, make_mixing, make_optimizer, make_schedule

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def training(config: RetrainConfig) -> Training:
    data = load_data(config.data, CPU)
    torch.manual_seed(0)
    return Training(
        config,
        build_model(config, in_channels=1, num_classes=10),
        data.train.subset(torch.arange(96)),
        num_classes=10,
        device=CPU,
        processes=Processes(),
    )


# --- Optimiser and schedule


def test_timms_schedule_is_the_papers() -> None:
    config = retrain_config(epochs=7, warmup_epochs=2, warmup_lr=1e-6, lr=1e-3)
    optimizer = make_optimizer(config, nn.Linear(2, 2))
    schedule = make_schedule(config, optimizer, steps=5)
    for step in range(35):
        schedule.step_update(step)
        wanted = cosine_lr(step, 35, lr=1e-3, warmup_steps=10, warmup_lr=1e-6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted, rel=1e-12)


def test_norms_and_biases_decay_unless_told_not_to() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    both = make_optimizer(retrain_config(), model)
    assert [len(g["params"]) for g in both.param_groups] == [4]
    assert isinstance(both, torch.optim.AdamW)
    apart = make_optimizer(retrain_config(decay_norms=False), model)
    assert [(len(g["params"]), g["weight_decay"] > 0) for g in apart.param_groups] == [
        (1, True),
        (3, False),
    ]


@pytest.mark.usefixtures("few_retrained")
def test_another_optimizer_of_timm(tmp_path: Path) -> None:
    retrain(retrain_config(model="vit", optimizer="lamb", epochs=2), tmp_path)
    with pytest.raises(ValueError, match="optimizer 'adamm' is unknown"):
        check_retrain(retrain_config(optimizer="adamm"))
    for name in ("adahessian", "bnbadamw8bit", "fusedlamb"):
        with pytest.raises(ValueError, match=f"optimizer '{name}' cannot be used here"):
            check_retrain(retrain_config(optimizer=name))


# --- What a batch goes through


@pytest.mark.parametrize("mixes", [False, True])
def test_a_batch_in_parts_takes_the_same_step(mixes: bool) -> None:
    found = []
    for parts in (1, 4):
        run = training(retrain_config(
            model="vit", accumulate=parts, label_smoothing=0.1, mixup=0.5 if mixes else 0.0
        ))  # fmt: skip
        record = run.epoch()
        found.append((record.train_loss, record.train_accuracy, *run.model.parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-5)


def test_mixing_makes_shares_of_classes() -> None:
    assert make_mixing(retrain_config(), 10) is None
    mixing = make_mixing(retrain_config(mixup=0.8, cutmix=1.0, label_smoothing=0.1), 10)
    assert mixing is not None
    images, labels = torch.rand(9, 1, 8, 8), torch.arange(9)
    before = images.clone()
    mixed, targets = mixing(images, labels)
    assert torch.equal(images, before)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(9))
    assert targets.min() == pytest.approx(0.01)  # smoothed
    assert not torch.equal(mixed[:8], before[:8])
    assert torch.equal(mixed[8], before[8])  # pairs: the odd one stays
    assert targets[8].argmax() == 8 and targets[8].max() == pytest.approx(0.91)
    alone, targets = mixing(images[:1], labels[:1])
    assert torch.equal(alone, before[:1]) and targets.argmax() == 0


def test_stochastic_depth_drops_operations_and_no_identity() -> None:
    torch.manual_seed(0)
    kept = DerivedCell(ENCODER, 12).eval()
    cell = DerivedCell(ENCODER, 12, drop_path=0.999999)
    cell.load_state_dict(kept.state_dict())
    x, y = torch.randn(2, 3, 5, 12)
    torch.testing.assert_close(cell.eval()(x, y), kept(x, y))
    names = ENCODER.operations
    out = cell.train()(x, y)
    if "identity" not in names:
        assert torch.equal(out, torch.zeros_like(out))
    assert not torch.equal(out, kept(x, y))
    assert set(cell.state_dict()) == set(kept.state_dict())


def test_stochastic_depth_grows_with_the_layers(genotype_path: str) -> None:
    config = retrain_config(model=genotype_path, depth=3, drop_path=0.2)
    model: Any = build_model(config, in_channels=1, num_classes=10)
    rates = [getattr(cell.drop_path, "drop_prob", 0.0) for cell in model.cells]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_bf16_keeps_weights_in_fp32() -> None:
    plain, half = (training(retrain_config(model="vit", precision=p)) for p in ("fp32", "bf16"))
    losses = [run.epoch().train_loss for run in (plain, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_network_trains_as_well() -> None:
    plain, compiled = (training(retrain_config(model="vit", compile=c)) for c in (False, True))
    losses = [run.epoch().train_loss for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert set(compiled.state()["model"]) == set(plain.state()["model"])


# --- Averages


def test_the_average_follows_the_weights() -> None:
    run = training(retrain_config(model="vit", ema_decay=0.5))
    name = "head.weight"
    expected = run.model.state_dict()[name].clone()
    step = run._step

    def watched(*batch: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal expected
        out = step(*batch)
        expected = 0.5 * expected + 0.5 * run.model.state_dict()[name]
        return out

    run._step = watched  # type: ignore[method-assign]
    run.epoch()
    torch.testing.assert_close(run.result.state_dict()[name], expected)
    assert make_average(retrain_config(), run.model) is None


@pytest.mark.usefixtures("few_retrained")
def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    config = retrain_config(model="vit", epochs=2)
    retrain(config, tmp_path / "plain")
    retrain(replace(config, ema_decay=0.9), tmp_path / "averaged")
    plain, averaged = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("plain", "averaged")
    )
    torch.testing.assert_close(plain["model"], averaged["model"])  # it changes no training
    torch.testing.assert_close(dict(averaged["average"]), weights(tmp_path / "averaged"))
    assert not torch.equal(averaged["average"]["head.weight"], averaged["model"]["head.weight"])


# --- Restart


@pytest.mark.usefixtures("few_retrained")
def test_a_modern_recipe_resumes_to_the_same_end(genotype_path: str, tmp_path: Path) -> None:
    base = retrain_config(model=genotype_path, epochs=3, data=replace(DIGITS, augment="none"))
    config = replace(modern(base), epochs=3, warmup_epochs=1, accumulate=2, warmup_lr=1e-7)
    assert config.mixup and config.ema_decay and config.drop_path and config.data.augment == "rand"
    retrain(config, tmp_path / "whole")
    crash = runs.crash_at(lambda e: isinstance(e, RetrainEpoch) and e.epoch == 1)
    with pytest.raises(CrashError):
        retrain(config, tmp_path / "killed", report=crash)
    torch.rand(3)
    retrain(config, tmp_path / "killed", resume=True)
    whole, killed = (weights(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_modern_presets() -> None:
    preset = get_preset("cifar10_modern")
    assert preset.search == get_preset("cifar10").search
    assert preset.retrain.data.augment == "rand"
    assert preset.retrain.lr == pytest.approx(1.25e-4)


# --- Several processes


@pytest.mark.usefixtures("few_retrained")
def test_result_says_what_memory_it_took(tmp_path: Path) -> None:
    result = retrain(retrain_config(model="vit", epochs=2), tmp_path)
    assert result.peak_memory_bytes is not None
    assert 100e6 < result.peak_memory_bytes < 50e9


TWO = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from dasvit.run.settings import config_from_dict
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import retrain
import json
torch.set_num_threads(1)
rank, store, settings, out = int(sys.argv[1]), *sys.argv[2:5]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                        timeout=timedelta(seconds=120))
events = []
config = config_from_dict(RetrainConfig, json.loads(settings))
result = retrain(config, out, report=events.append, resume=True)
assert bool(events) == (rank == 0)
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
        data=replace(DIGITS, augment="shift"),
    )
    one = retrain(config, tmp_path / "one")
    said = two_processes(config, tmp_path / "two", tmp_path / "store")
    assert said[0] == said[1]  # reduced over both
    counts = [
        load_retrain_result(tmp_path / n / "result.json").num_processes for n in ("one", "two")
    ]
    assert counts == [1, 2]
    torch.testing.assert_close(
        weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-4, atol=1e-5
    )
    rows = [read_trace(tmp_path / name / "train.jsonl") for name in ("one", "two")]
    for left, right in zip(*rows, strict=True):
        assert left["train_loss"] == pytest.approx(right["train_loss"], rel=1e-4)
    assert abs(one.test_top1 - json.loads(said[0])[0]) <= 2 / 360


def test_a_batch_that_the_processes_cannot_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        dasvit.training.loop, "current_processes", lambda: Processes(rank=0, count=5)
    )
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 5 processes"):
        retrain(retrain_config(model="vit"), tmp_path)


# --- Bad input


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"accumulate": 5}, "accumulate must divide batch_size"),
        ({"accumulate": 0}, "accumulate must divide batch_size"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"drop_path": -0.1}, r"drop_path must lie in \[0, 1\)"),
        ({"mixup": -1.0}, "mixup must be >= 0"),
        ({"mixup": 0.5, "batch_size": 33}, "batch_size must be even"),
        ({"precision": "fp8"}, "precision must be fp32 or bf16"),
    ],
)
def test_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        retrain_config(**changes)


def test_too_little_disk_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="GB free; free some"):
        check_free_space(tmp_path / "not" / "there", 10**18)

    def full(folder: Path, needed: int) -> None:
        check_free_space(folder, needed * 10**12)

    monkeypatch.setattr(dasvit.training.loop, "check_free_space", full)
    with pytest.raises(ValueError, match="its disk has"):
        retrain(retrain_config(model="vit"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
