"""Numbers of settings: of the right kind, and of a size that can be."""

import dataclasses
from typing import Any

import pytest

from dasvit.data.config import DataConfig
from dasvit.run.settings import SettingError
from dasvit.search.config import SearchConfig
from dasvit.training.config import RetrainConfig


@pytest.mark.parametrize(
    ("kind", "name", "largest"),
    [
        (SearchConfig, "dim", 65_536),
        (RetrainConfig, "dim", 65_536),
        (RetrainConfig, "depth", 1000),
        (DataConfig, "num_workers", 256),
        (SearchConfig, "batch_size", 2**31 - 1),
        (SearchConfig, "seed", 2**63 - 1),
    ],
)
def test_the_largest_number_is_named(kind: type, name: str, largest: int) -> None:
    assert getattr(kind(**{name: largest}), name) == largest
    for value in (largest + 1, 10**400, 10**4000):
        with pytest.raises(
            SettingError, match=rf"^{name} must be at most {largest}, but"
        ) as caught:
            kind(**{name: value})
        assert len(str(caught.value)) < 100


def test_a_huge_image_is_refused() -> None:
    with pytest.raises(SettingError, match="image_size must be at most 8192, but got 16384"):
        DataConfig(image_size=16_384)


def test_a_tower_of_layers_is_refused() -> None:
    with pytest.raises(SettingError, match="stage_layers must lie in 1 to 1000"):
        SearchConfig(stage_layers=(2, 4, 10**9))


@pytest.mark.parametrize("value", [True, "8", 8.0, None])
def test_a_whole_number_is_nothing_else(value: Any) -> None:
    with pytest.raises(SettingError, match="dim must be a whole number, but got"):
        dataclasses.replace(SearchConfig(), dim=value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), True, "1"])
def test_a_float_is_finite(value: Any) -> None:
    with pytest.raises(SettingError, match="xi must be a finite number, but got"):
        dataclasses.replace(SearchConfig(), xi=value)
