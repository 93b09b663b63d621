"""Networks by name: every comparator of Table I builds, runs and trains; what cannot is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.runs import few_images, retrain_config

import dasvit.training.loop
from dasvit.costs import complexity
from dasvit.data.config import DataConfig
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.training.autoformer import AutoFormer
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import check_retrain, retrain
from dasvit.training.networks import build_model, model_on_meta

CONVOLUTIONAL = (
    "vgg16",
    "vgg19",
    "resnet50",
    "resnet152",
    "efficientnet_b7",
    "regnety_120",
    "regnety_160",
)
TRANSFORMERS = (
    "vit_base_patch16_224",
    "tnt_b_patch16_224",
    "cait_s36_384",
    "autoformer_base_patch16_224",
    "dasvit_base_patch16_224",
)


def config_at(size: int, **changes: Any) -> RetrainConfig:
    data = DataConfig(dataset="digits", image_size=size, augment="none")
    return retrain_config(data=data, **changes)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *((name, 3) for name in (*CONVOLUTIONAL, *TRANSFORMERS)),
        *((name, 1) for name in ("resnet50", "tnt_b_patch16_224", "cait_s36_384")),
    ],
)
def test_every_comparator_runs_and_trains_at_the_papers_size(name: str, channels: int) -> None:
    model = model_on_meta(config_at(224, model=name), in_channels=channels, num_classes=100)
    assert all(p.is_meta for p in model.parameters())
    classifier: Any = model
    assert classifier.get_classifier().out_features == 100


def test_autoformer_is_known_by_its_name() -> None:
    model = model_on_meta(config_at(32, model="autoformer_base_patch16_224"), in_channels=1)
    assert isinstance(model, AutoFormer)
    assert model.patch_embed.grid_size == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_every_comparator_takes_a_step_at_its_own_size(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few_images(monkeypatch, dasvit.training.loop, train=4, test=2)
    config = config_at(32, model=name, dim=768, depth=12, batch_size=4, epochs=1, warmup_epochs=0)
    result = retrain(config, tmp_path)
    assert result.num_params > 20e6
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 8),
        ("tnt_b_patch16_224", 16),
        ("vit_base_patch16_224", 16),
        ("autoformer_base_patch16_224", 16),
        ("dasvit_base_patch16_224", 16),
    ],
)
def test_a_comparator_trains_through_retrain(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few_images(monkeypatch, dasvit.training.loop, train=4, test=2)
    # The recipe's own path; the network is built with few layers where timm takes a number.
    fewer: dict[str, dict[str, Any]] = {
        "tnt_b_patch16_224": {"depth": 1},
        "vit_base_patch16_224": {"depth": 1},
        "autoformer_base_patch16_224": {"num_heads": (9, 10), "mlp_ratio": (3.5, 4.0)},
        "dasvit_base_patch16_224": {"depth": 1},
        "resnet50": {"layers": (1, 1, 1, 1)},
    }
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **settings: create(name, **(settings | fewer[name]))
    )
    config = config_at(size, model=name, batch_size=4, epochs=1, warmup_epochs=0)
    result = retrain(config, tmp_path)
    assert result.model == name
    assert result.num_params == sum(
        p.numel() for p in build_model(config, in_channels=1, num_classes=10).parameters()
    )
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg16", 8, r"'vgg16' does not run on images of 8 × 8 .*try a larger --image-size"),
        ("vit_base_patch16_224", 8, r"which do not divide images of 8 × 8; give --image-size"),
        ("convnext_tiny", 8, r"'convnext_tiny' does not run on images of 8 × 8"),
        ("vit_base_patch16_224", 20, r"patches of 16 × 16, which do not divide images of 20 × 20"),
        ("autoformer_base_patch16_224", 24, r"do not divide images of 24 × 24"),
        ("tnt_b_patch16_224", 40, r"'tnt_b_patch16_224' has patches of 16 × 16"),
        ("cait_s36_384", 40, r"'cait_s36_384' has patches of 16 × 16"),
    ],
)
def test_an_image_size_that_does_not_fit_is_refused(name: str, size: int, message: str) -> None:
    config = config_at(size, model=name)
    for refuse in (model_on_meta, check_retrain):
        with pytest.raises(ValueError, match=message) as refused:
            refuse(config)
        assert "\n" not in str(refused.value)


def test_what_timms_networks_do_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="'vgg16' has no stochastic depth; give --drop-path 0"):
        check_retrain(config_at(32, model="vgg16", drop_path=0.1))
    with pytest.raises(ValueError, match=r"dropout=0.5 .* 'resnet50' .* give --dropout 0"):
        check_retrain(config_at(32, model="resnet50", dropout=0.5))
    check_retrain(config_at(32, model="resnet50", drop_path=0.1))


def test_a_batch_norm_over_one_value_is_refused_before_training(tmp_path: Path) -> None:
    config = config_at(8, model="resnet50", batch_size=1)
    with pytest.raises(ValueError, match=r"does not train on .* in batches of 1 .*--batch-size"):
        retrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_retrain(replace(config, batch_size=2))


def test_a_network_without_a_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **s: create(name, **(s | {"features_only": True}))
    )
    with pytest.raises(ValueError, match="it is no classifier"):
        model_on_meta(config_at(32, model="resnet50"))


@pytest.mark.parametrize("error", [TypeError("depth is text"), AssertionError(), KeyError("x")])
def test_what_timm_refuses_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", refuse)
    message = r"'resnet50' cannot be built for images of 32 × 32 with 3 channels \("
    with pytest.raises(ValueError, match=message) as refused:
        model_on_meta(config_at(32, model="resnet50"))
    assert (str(error) or "AssertionError") in str(refused.value)


@pytest.mark.parametrize("ranges", [torch.linspace, torch.arange])
def test_a_constructor_that_reads_values(
    ranges: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def values(name: str, **settings: Any) -> torch.nn.Module:
        ends = (0, 1, 5) if ranges is torch.linspace else (5,)
        assert ranges(*ends).unique().numel() == 5  # impossible on the meta device
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", values)
    model = model_on_meta(config_at(32, model="test_resnet"))
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_the_plain_vit_is_timms() -> None:
    config = config_at(32, dim=768, depth=12, vit_heads=12, patch_size=16)
    ours, named = (
        complexity(model_on_meta(c, num_classes=10), (3, 32, 32))
        for c in (config, replace(config, model="vit_base_patch16_224"))
    )
    assert ours == named


def test_an_encoder_of_nothing_but_zero_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    Genotype(((Edge(0, "zero"),), (Edge(1, "zero"),))).save(path)
    config = RetrainConfig(model=str(path), dim=8, depth=1)
    with pytest.raises(ValueError, match=r"zero\.json: all edges are zero"):
        build_model(config, in_channels=3, num_classes=10)


def test_an_unknown_operation_names_the_genotype(tmp_path: Path) -> None:
    path = tmp_path / "unknown.json"
    Genotype(((Edge(0, "wave"),),)).save(path)
    config = RetrainConfig(model=str(path), dim=8, depth=1)
    with pytest.raises(ValueError, match=r"unknown\.json: unknown operation 'wave'"):
        build_model(config, in_channels=3, num_classes=10)
