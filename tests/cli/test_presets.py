"""Presets: complete, runnable, and the paper's where they say so."""

import dataclasses

import pytest
from support import runs

from dasvit.presets import PAPER_PRESET, PRESETS, get_preset, plain_darts
from dasvit.run.settings import config_from_dict, config_to_dict
from dasvit.search.config import SearchConfig
from dasvit.search.loop import check_search
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import check_retrain

BASES = ("digits", "cifar10", "imagenet100")


def test_names() -> None:
    darts = [name for base in BASES for name in (base, f"{base}_darts")]
    modern = ["cifar10_modern", "imagenet100_modern"]
    assert sorted(PRESETS) == sorted([*darts, *modern, "fashion_mnist"])
    assert PAPER_PRESET == "cifar10"
    assert all(get_preset(name).name == name for name in PRESETS)
    assert all(PRESETS[name].__doc__ for name in PRESETS)


@pytest.mark.parametrize("name", ["", "mnist", "Digits", "digits "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown preset") as caught:
        get_preset(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip(name: str) -> None:
    preset = get_preset(name)
    assert preset == get_preset(name)
    assert config_from_dict(SearchConfig, config_to_dict(preset.search)) == preset.search
    assert config_from_dict(RetrainConfig, config_to_dict(preset.retrain)) == preset.retrain
    assert (
        preset.search.data.dataset
        == preset.retrain.data.dataset
        == name.removesuffix("_darts").removesuffix("_modern")
    )


@pytest.mark.parametrize("base", ["cifar10", "imagenet100"])
def test_the_papers_setting(base: str) -> None:
    preset = get_preset(base)
    data = preset.search.data
    assert (data.image_size, preset.search.patch_size, preset.search.dim) == (224, 16, 768)
    # All but the data is the default, which tests/test_config.py pins to the paper.
    assert preset.search == SearchConfig(data=data)
    assert preset.retrain == RetrainConfig(data=data, model=f"dasvit_{base}")


def test_digits_is_the_papers_search_at_a_small_size() -> None:
    search, paper = get_preset("digits").search, get_preset("cifar10").search
    assert len(search.stage_layers) == len(paper.stage_layers) == 3
    assert list(search.stage_layers) == sorted(set(search.stage_layers))  # deeper stage by stage
    assert search.stage_ops == paper.stage_ops == (8, 5, 3)
    assert [o for o in search.operations if "msa" not in o] == [
        o for o in paper.operations if "msa" not in o
    ]
    assert search.operations[2:5] == ("msa_h2", "msa_h3", "msa_h4")
    assert search.token_ratio < 1
    assert search.skip_weight > 0
    assert search.type_weight > 0


@pytest.mark.parametrize("base", BASES)
def test_plain_darts(base: str) -> None:
    """All tokens, no fairness, one stage, as many epochs; the rest as it was."""
    full, darts = get_preset(base), get_preset(f"{base}_darts")
    assert darts.retrain == full.retrain
    assert darts.search == plain_darts(full.search)
    search = darts.search
    assert (search.token_ratio, search.skip_weight, search.type_weight) == (1.0, 0.0, 0.0)
    assert (search.stage_layers, search.stage_ops) == (full.search.stage_layers[:1], (8,))
    assert search.total_epochs == search.stage_epochs == full.search.total_epochs
    changed = {
        f.name
        for f in dataclasses.fields(SearchConfig)
        if getattr(search, f.name) != getattr(full.search, f.name)
    }
    assert changed == {
        "token_ratio",
        "skip_weight",
        "type_weight",
        "stage_layers",
        "stage_ops",
        "stage_epochs",
    }
    assert plain_darts(search) == search


def test_plain_darts_of_other_settings() -> None:
    config = runs.search_config(stage_layers=(3, 4, 5), xi=0.1, seed=7)
    darts = plain_darts(config)
    assert (darts.stage_layers, darts.total_epochs, darts.xi, darts.seed) == ((3,), 6, 0.1, 7)


@pytest.mark.parametrize("name", ["digits", "digits_darts"])
def test_digits_can_start(name: str) -> None:
    preset = get_preset(name)
    check_search(preset.search)
    check_retrain(dataclasses.replace(preset.retrain, model="vit"))


@pytest.mark.parametrize("name", ["cifar10", "imagenet100"])
def test_the_papers_need_their_data(name: str) -> None:
    preset = get_preset(name)
    with pytest.raises(ValueError, match=f"data set '{name}' needs --data-dir"):
        check_search(preset.search)
    with pytest.raises(ValueError, match=f"data set '{name}' needs --data-dir"):
        check_retrain(preset.retrain)
