"""Settings of a retraining: what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from dasvit.presets import get_preset
from dasvit.run.settings import SettingError

PAPER = get_preset("cifar10").retrain
NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        replace(PAPER, **changes)
    for part in (message, *map(str, changes.values())):
        assert part in str(caught.value)
