"""Configurations to JSON and back."""

import dataclasses
import json
from typing import Any, TypeVar

from dasvit.config.data import DataConfig
from dasvit.config.retrain import RetrainConfig
from dasvit.config.search import SearchConfig
from dasvit.setting import SettingError, require

__all__ = ["config_from_dict", "config_to_dict", "with_defaults"]

ConfigT = TypeVar("ConfigT", SearchConfig, RetrainConfig)


def config_to_dict(config: SearchConfig | RetrainConfig) -> dict[str, Any]:
    """A JSON-ready dictionary of a configuration."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def with_defaults(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version, with those that it did not know at their defaults: by default
    a new setting computes what was computed before there was one."""
    return defaults | {
        name: with_defaults(value, known)
        if isinstance(value, dict) and isinstance(known := defaults.get(name), dict)
        else value
        for name, value in saved.items()
    }


def config_from_dict(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The inverse of `config_to_dict`.

    Raises:
        ValueError: a key that is no setting, or a value that fails the checks.
    """
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    require(not unknown, f"unknown settings {unknown} for {kind.__name__}")
    prepared: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    if "data" in prepared:
        require(isinstance(prepared["data"], dict), f"data must be an object: {prepared['data']!r}")
        data_known = {f.name for f in dataclasses.fields(DataConfig)}
        unknown = sorted(set(prepared["data"]) - data_known)
        require(not unknown, f"unknown settings {unknown} for DataConfig")
    try:
        if "data" in prepared:
            prepared["data"] = DataConfig(**prepared["data"])
        return kind(**prepared)
    except TypeError as error:  # text for a number, null for a list
        raise SettingError(f"malformed settings for {kind.__name__}: {error}") from None
