"""Settings: values are checked against their types, and go to JSON and back."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from dasvit.run.settings import (
    Range,
    SettingError,
    check_settings,
    config_from_dict,
    config_to_dict,
    with_defaults,
)

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, kw_only=True)
class Part:
    size: Annotated[int, Range("[1, 100]")] = 8

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    part: Part = field(default_factory=Part)
    name: str = "a"
    on: bool = True
    where: str | None = None
    epochs: Annotated[int, Range("[1, inf)")] = 1
    count: int = 0
    share: Annotated[float, Range("(0, 1]", "1 takes all")] = 0.5
    rate: Annotated[float, Range("(0, inf)")] = 1e-3
    decay: Annotated[float, Range("[0, 1)")] = 0.0
    shape: Literal["round", "square", "flat"] = "round"
    layers: tuple[int, ...] = (1, 2)
    betas: tuple[float, Annotated[float, Range("[0, 1)")]] = (0.5, 0.9)
    names: tuple[str, ...] = ("a",)

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "must be at least 1, but got 0"),
        ("epochs", 2**31, "must be at most 2147483647, but got 2147483648"),
        ("epochs", 10**4000, "must be at most 2147483647, but got far more"),
        ("epochs", True, "must be a whole number, but got True"),
        ("betas", (0.5,), r"must have 2 values, but got \(0.5,\)"),
        ("betas", (7.0, 1.0), r"must lie in \[0, 1\), but got 1.0"),
        ("names", "zero", "must be several values in a tuple, but got 'zero'"),
        ("names", ("zero", 1), "must hold texts, but got 1"),
        ("share", 0.0, r"must lie in \(0, 1\], but got 0.0; 1 takes all"),
        ("rate", 0.0, "must be positive, but got 0.0"),
        ("rate", INF, "must be a finite number, but got inf"),
        ("decay", NAN, "must be a finite number, but got nan"),
        ("decay", 1.0, r"must lie in \[0, 1\), but got 1.0"),
        ("shape", "oval", "must be round, square or flat, but got 'oval'"),
        ("layers", (1, 2.5), "must be a whole number, but got 2.5"),
    ],
)
def test_values_that_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{name} {message}$"):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 2**31 - 1), ("count", -(10**6)), ("share", 1), ("share", 1e-9), ("rate", 1e30),
        ("decay", 0), ("shape", "flat"), ("layers", ()), ("where", None),
    ],
)  # fmt: skip
def test_values_at_a_bound(name: str, value: Any) -> None:
    assert getattr(Settings(**{name: value}), name) == value


def test_dictionary_round_trip() -> None:
    config = Settings(part=Part(size=3), where="x", layers=(4, 5), share=0.1 + 0.2)
    values = config_to_dict(config)
    assert json.loads(json.dumps(values)) == values
    assert values["layers"] == [4, 5] and values["part"] == {"size": 3}
    assert config_from_dict(Settings, values) == config
    assert config_from_dict(Settings, {"part": {}}) == Settings()  # what is missing is the default


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lambda": 0.5, "colour": 1}, r"unknown settings \['colour', 'lambda'\] for Settings"),
        ({"part": {"path": "x"}}, r"unknown settings \['path'\] for Part"),
        ({"part": {"size": 0}}, "size must lie in"),
        ({"part": 3}, "part must be an object: 3"),
        ({"layers": None}, "layers must be several values in a tuple, but got None"),
    ],
)
def test_bad_dictionaries(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        config_from_dict(Settings, values)


def test_settings_of_an_earlier_version_are_at_their_defaults() -> None:
    saved = {"xi": 0.0, "data": {"data_dir": None}}
    defaults = {"xi": 1.0, "compile": False, "data": {"data_dir": "d", "num_workers": 0}}
    assert with_defaults(saved, defaults) == {
        "xi": 0.0, "compile": False, "data": {"data_dir": None, "num_workers": 0}
    }  # fmt: skip
