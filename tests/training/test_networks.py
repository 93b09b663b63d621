"""Networks by name: every comparator of Table I builds, runs and trains; what cannot is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.runs import few_images, retrain_config

from dasvit.data.config import DataConfig
from dasvit.spaces.cell.derived_network import DerivedViT
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.training.autoformer import AutoFormer
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import retrain
from dasvit.training.networks import build_network, model_on_meta

CONVOLUTIONAL = (
    *("vgg16", "vgg19", "resnet50", "resnet152", "regnety_120", "regnety_160", "efficientnet_b7"),
)
TRANSFORMERS = (
    *("vit_base_patch16_224", "tnt_b_patch16_224", "cait_s36_384", "autoformer_base_patch16_224"),
    "dasvit_base_patch16_224",
)


def config_at(size: int, **changes: Any) -> RetrainConfig:
    data = DataConfig(dataset="digits", image_size=size, augment="none")
    return retrain_config(data=data, **changes)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *((name, 3) for name in (*CONVOLUTIONAL[::2], *TRANSFORMERS)),
        ("tnt_b_patch16_224", 1),
    ],
)
def test_comparators_run_and_train_at_the_papers_size(name: str, channels: int) -> None:
    model: Any = model_on_meta(config_at(224, model=name), in_channels=channels, num_classes=100)
    assert all(p.is_meta for p in model.parameters())
    assert model.get_classifier().out_features == 100


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_every_comparator_takes_a_step_at_its_own_size(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few_images(monkeypatch, train=4, test=2)
    config = config_at(32, model=name, dim=768, depth=12, batch_size=4, epochs=1, warmup_epochs=0)
    assert retrain(config, tmp_path).num_params > 20e6
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_models_by_name(tmp_path: Path) -> None:
    sizes = {"in_channels": 1, "num_classes": 7}
    for name in ("dasvit_cifar10", str(tmp_path / "found.json")):
        Genotype(((Edge(0, "msa_h2"),),)).save(tmp_path / "found.json")
        model: Any = build_network(
            retrain_config(model=name, dim=24, depth=3, dropout=0.3, drop_path=0.2), **sizes
        )
        assert isinstance(model, DerivedViT)
        assert (len(model.blocks), model.embed_dim, model.num_classes) == (3, 24, 7)
        rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2])
        assert {m.p for m in model.blocks.modules() if type(m) is torch.nn.Dropout} == {0.3}
    vit: Any = build_network(retrain_config(dim=24, depth=3, vit_heads=6, drop_path=0.2), **sizes)
    assert (len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.num_heads) == (3, 24, 6)
    assert vit.patch_embed.img_size == (8, 8) and vit.patch_embed.proj.in_channels == 1
    assert vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    config = config_at(32, model="autoformer_base_patch16_224")
    autoformer = model_on_meta(config, in_channels=1)
    assert isinstance(autoformer, AutoFormer) and autoformer.patch_embed.grid_size == (2, 2)
    config = config_at(32, dim=768, depth=12, vit_heads=12, patch_size=16)
    shapes = [
        {name: p.shape for name, p in model_on_meta(c).named_parameters()}
        for c in (config, replace(config, model="vit_base_patch16_224"))
    ]
    assert shapes[0] == shapes[1]


FOUND = Genotype(((Edge(0, "wave"),),))
NOTHING = Genotype(((Edge(0, "zero"),), (Edge(1, "zero"),)))


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (8, {"model": "vgg16"}, r"'vgg16' does not run on images of 8 × 8 .*larger --image-size"),
        (8, {"model": "vit_base_patch16_224"}, r"do not divide images of 8 × 8; give --image-size"),
        (40, {"model": "tnt_b_patch16_224"}, "'tnt_b_patch16_224' has patches of 16 × 16"),
        (32, {"model": "vgg16", "drop_path": 0.1}, "'vgg16' has no stochastic depth; give --drop"),
        (32, {"model": "resnet50", "dropout": 0.5}, r"dropout=0.5 .* 'resnet50' .* --dropout 0"),
        (8, {"model": "resnet50", "batch_size": 1}, r"does not train on .* in batches of 1 .*--b"),
        (8, {"model": "no_such_model"}, r"unknown model 'no_such_model'; give 'vit', a shipped"),
        (8, {"model": "lost.json"}, r"lost\.json is neither a shipped genotype"),
        (8, {"model": "wave.json"}, r"wave\.json: unknown operation 'wave'"),
        (8, {"model": "zero.json"}, r"zero\.json: all edges are zero"),
        (8, {"model": "dasvit_cifar10", "dim": 12}, r"dasvit_cifar10: .*msa_h8.*dim=12"),
        (8, {"vit_heads": 5}, r"vit_heads must divide dim, but got \(vit_heads=5, dim=12\)"),
        (8, {"dim": 60_000}, r"has [0-9.]+ G parameters, more than one device"),
        (8, {"plugins": ("no_such_plugin",)}, "cannot import 'no_such_plugin'"),
        (8, {"optimizer": "adamm"}, "optimizer 'adamm' is unknown"),
        (8, {"optimizer": "adahessian"}, "optimizer 'adahessian' cannot be used here"),
        (8, {"optimizer": "bnbadamw8bit"}, "optimizer 'bnbadamw8bit' cannot be used here"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(
    size: int,
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    FOUND.save("wave.json")
    NOTHING.save("zero.json")
    with pytest.raises(ValueError, match=message) as refused:
        retrain(config_at(size, **changes), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_network_without_a_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **s: create(*a, **s, features_only=True))
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
