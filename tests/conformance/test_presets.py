"""Every preset through one suite: complete, runnable, and the paper's where it says so."""

import json
import re
from dataclasses import replace

import pytest
from support.plugin_method import Decided

from dasvit.data.config import DataConfig
from dasvit.methods import DARTS, DASViT
from dasvit.presets import PAPER_PRESET, PRESETS, get_preset
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.checks import check_search, check_supernet
from dasvit.search.config import SearchConfig
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
    for method in (DARTS, Decided):  # another method takes the same epochs
        other = search.replaced(method=method.like(search.method))
        assert other.total_epochs == search.total_epochs
        check_supernet(other)
    if search.data.dataset == "digits":
        check_search(search)
        return
    with pytest.raises(ValueError, match=f"data set '{search.data.dataset}' needs --data-dir"):
        check_search(search)


MSA, MLP = ("msa_h8", "msa_h12", "msa_h16"), ("mlp_r0.5", "mlp_r3", "mlp_r4")
PAPER_SEARCH = {
    "operations": ("zero", "identity", *MSA, *MLP),
    "stage_layers": (2, 4, 6),
    "stage_ops": (8, 5, 3),
    "stage_epochs": 30,
    "dim": 768,
    "num_nodes": 2,
    "dropout": 0.0,
    "image_size": 224,
    "patch_size": 16,
    "batch_size": 64,
    "val_fraction": 0.5,
    "weight_lr": 1e-3,
    "weight_decay": 5e-2,
    "grad_clip": 0.0,
    "lr_span": "stage",
    "alpha_lr": 3e-4,
    "alpha_betas": (0.5, 0.999),
    "alpha_weight_decay": 1e-3,
    "xi": 0.0,
    "token_where": "input",
    "prune_zero": "ranked",
    "inherit_weights": "cyclic",
    "inherit_alpha": "carry",
}
PAPER_RETRAINING = {
    "dim": 768,
    "depth": 12,
    "patch_size": 16,
    "vit_heads": 12,
    "epochs": 500,
    "warmup_epochs": 20,
    "warmup_lr": 1e-6,
    "batch_size": 128,
    "lr": 1e-3,
    "weight_decay": 5e-2,
    "grad_clip": 0.0,
}


@pytest.mark.parametrize("name", ["cifar10", "imagenet100"])
def test_the_papers_setting(name: str) -> None:
    """Section IV-A, number by number."""
    preset, modern = get_preset(name), get_preset(f"{name}_modern")
    search, retrain = preset.search, preset.retrain
    assert preset.needs_gpu and PAPER_PRESET == "cifar10"
    assert {setting: search.setting(setting) for setting in PAPER_SEARCH} == PAPER_SEARCH
    assert search.space == CellSpace() and search.method == DASViT()
    assert replace(retrain, **PAPER_RETRAINING) == retrain
    assert (retrain.model, retrain.data) == (f"dasvit_{name}", search.data)
    assert modern.search == search and modern.retrain.mixup > retrain.mixup  # retraining alone


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
    own = {name: PAPER_SEARCH[name] for name in ("stage_layers", "stage_epochs", "alpha_lr")}
    assert replace(small.method, **own) == paper.method


def test_unknown_names_are_refused() -> None:
    for name in ("", "mnist", "Digits"):
        with pytest.raises(ValueError, match="unknown preset") as caught:
            get_preset(name)
        assert all(known in str(caught.value) for known in [repr(name), *PRESETS])
