"""Settings of a retraining: every check, and the dictionary form."""

from dataclasses import replace
from typing import Any

import pytest

from dasvit.presets import get_preset
from dasvit.run.settings import SettingError, config_from_dict, config_to_dict
from dasvit.training.config import RetrainConfig

NAN = float("nan")


PAPER = get_preset("cifar10").retrain


def test_the_papers_values() -> None:
    retrain = PAPER
    assert (retrain.epochs, retrain.warmup_epochs, retrain.warmup_lr) == (500, 20, 1e-6)
    assert (retrain.batch_size, retrain.lr, retrain.weight_decay) == (128, 1e-3, 5e-2)
    assert (retrain.dim, retrain.depth, retrain.patch_size) == (768, 12, 16)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"dim": 0}, "dim"),
        ({"depth": 0}, "depth"),
        ({"patch_size": -16}, "patch_size"),
        ({"patch_size": 15}, "patch_size=15, image_size=224"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 20}, "warmup_epochs=20, epochs=20"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"warmup_lr": 0.0}, "warmup_lr"),
        ({"warmup_lr": 0.1}, "warmup_lr=0.1, lr=0.001"),
        ({"lr": 0.0}, "lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"dropout": 1.5}, "dropout"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"grad_clip": -1.0}, "grad_clip"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": NAN}, "label_smoothing"),
    ],
    ids=str,
)
def test_retrain_checks(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(SettingError) as caught:
        replace(PAPER, **changes)
    for part in (fragment, *map(str, changes.values())):
        assert part in str(caught.value)


def test_dictionary_round_trip() -> None:
    config = RetrainConfig(model="vit", plugins=("a", "b"), warmup_epochs=0)
    assert config_from_dict(RetrainConfig, config_to_dict(config)) == config
    with pytest.raises(ValueError, match=r"\['dimm', 'xi'\] for RetrainConfig"):
        config_from_dict(RetrainConfig, {"xi": 0.5, "dimm": 3})
