"""Every preset through one suite: complete, runnable, and the paper's where it says so."""

import json
import re
from dataclasses import replace

import pytest
from support.plugin_method import BetaDARTS

from dasvit.data.config import DataConfig
from dasvit.methods import DARTS, DASViT
from dasvit.presets import PAPER_PRESET, PRESETS, get_preset, modern
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.search.loop import check_search, check_supernet
from dasvit.spaces import CellSpace
from dasvit.spaces.cell.operations import check_shape_preserving
from dasvit.training.config import RetrainConfig


@pytest.mark.parametrize("name", PRESETS)
def test_conformance(name: str) -> None:
    preset = get_preset(name)
    assert preset == get_preset(name) and preset.name == name and PRESETS[name].__doc__
    search, retrain = preset.search, preset.retrain
    for kind, config in ((SearchConfig, search), (RetrainConfig, retrain)):
        assert config_from_dict(kind, json.loads(json.dumps(config_to_dict(config)))) == config
    check_supernet(search)
    assert name.startswith(search.data.dataset)
    # What is found is retrained on the same images, where its operations fit the width.
    assert replace(search.data, augment="none") == replace(retrain.data, augment="none")
    for operation in search.space.operations:
        check_shape_preserving(operation, retrain.dim)
    assert retrain.dim % retrain.vit_heads == 0
    for method in (DARTS, BetaDARTS):  # another method takes the same epochs
        other = search.replaced(method=method.like(search.method))
        assert other.total_epochs == search.total_epochs
        check_supernet(other)
    if search.data.dataset == "digits":
        check_search(search)
        return
    with pytest.raises(ValueError, match=f"data set '{search.data.dataset}' needs --data-dir"):
        check_search(search)


@pytest.mark.parametrize("name", ["cifar10", "imagenet100"])
def test_the_papers_setting(name: str) -> None:
    """Section IV-A, number by number."""
    preset = get_preset(name)
    search = preset.search
    assert preset.needs_gpu and PAPER_PRESET == "cifar10"
    assert (search.data.image_size, search.space.patch_size, search.space.dim) == (224, 16, 768)
    assert search.space == CellSpace() and search.method == DASViT()
    assert [(s.num_layers, s.num_ops, s.epochs) for s in search.stages] == [
        (2, 8, 30), (4, 5, 30), (6, 3, 30)
    ]  # fmt: skip
    assert (search.batch_size, search.weight_lr, search.weight_decay) == (64, 1e-3, 5e-2)
    assert (search.lr_span, search.grad_clip) == ("stage", 0.0)
    assert (search.method.alpha_lr, search.method.alpha_weight_decay) == (3e-4, 1e-3)
    retrain = preset.retrain
    assert (retrain.model, retrain.data) == (f"dasvit_{name}", search.data)
    assert (retrain.dim, retrain.depth, retrain.patch_size, retrain.vit_heads) == (768, 12, 16, 12)
    assert (retrain.epochs, retrain.warmup_epochs, retrain.warmup_lr) == (500, 20, 1e-6)
    assert (retrain.batch_size, retrain.lr, retrain.weight_decay) == (128, 1e-3, 5e-2)
    assert retrain.grad_clip == 0.0


def test_settings_of_python_begin_where_the_command_line_does() -> None:
    digits = get_preset("digits")
    assert (digits.search, digits.retrain) == (SearchConfig(), RetrainConfig())
    assert digits.search.data == digits.retrain.data == DataConfig()


def test_digits_is_the_papers_search_at_a_small_size() -> None:
    small, paper = get_preset("digits").search, get_preset("cifar10").search
    assert [s.num_ops for s in small.stages] == [s.num_ops for s in paper.stages]
    assert [re.sub("h[0-9]+", "h", name) for name in small.space.operations] == [
        re.sub("h[0-9]+", "h", name) for name in paper.space.operations
    ]
    own = {"stage_layers": paper.method.stage_layers, "stage_epochs": 30, "alpha_lr": 3e-4}
    assert replace(small.method, **own) == paper.method


def test_modern_is_a_recipe_for_retraining_alone() -> None:
    plain, recipe = get_preset("cifar10"), get_preset("cifar10_modern")
    assert recipe.search == plain.search and recipe.retrain == modern(plain.retrain)
    assert recipe.retrain.data.augment == "rand" and recipe.retrain.mixup > 0


@pytest.mark.parametrize("name", ["", "mnist", "Digits", "digits "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown preset") as caught:
        get_preset(name)
    assert repr(name) in str(caught.value) and all(known in str(caught.value) for known in PRESETS)
