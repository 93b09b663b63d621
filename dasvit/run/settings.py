"""What all settings have in common: checks of their values, and the way to JSON and back."""

import dataclasses
import json
import math
from typing import Any, TypeVar, get_type_hints

__all__ = [
    "SettingError",
    "check_numbers",
    "config_from_dict",
    "config_to_dict",
    "require",
    "with_defaults",
]

ConfigT = TypeVar("ConfigT")

_LARGEST = {
    "dim": 2**16,
    "depth": 1000,
    "vit_heads": 2**16,
    "image_size": 2**13,
    "num_workers": 2**8,
    "seed": 2**63 - 1,
}
"""Far above what runs on a machine, and small enough that counting it is no work."""
_LARGEST_OTHER = 2**31 - 1


class SettingError(ValueError):
    """A setting that cannot be; the message has the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise `SettingError` unless the condition holds."""
    if not condition:
        raise SettingError(message)


def check_numbers(config: Any) -> None:
    """Check a dataclass: every int field is a whole number that is not absurdly large, every float
    field finite; true of no bool or text.

    Raises:
        SettingError: naming the first field that is not.
    """
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if f.type is int:
            whole = number and isinstance(value, int)
            require(whole, f"{f.name} must be a whole number, but got {value!r}")
            largest = _LARGEST.get(f.name, _LARGEST_OTHER)
            shown = value if value < 10**20 else "far more"
            require(value <= largest, f"{f.name} must be at most {largest}, but got {shown}")
        elif f.type is float:
            finite = number and math.isfinite(value)
            require(finite, f"{f.name} must be a finite number, but got {value!r}")


def config_to_dict(config: Any) -> dict[str, Any]:
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
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    require(not unknown, f"unknown settings {unknown} for {kind.__name__}")
    prepared: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            require(isinstance(value, dict), f"{name} must be an object: {value!r}")
            value = config_from_dict(hints[name], value)
        prepared[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**prepared)
    except TypeError as error:  # text for a number, null for a list
        raise SettingError(f"malformed settings for {kind.__name__}: {error}") from None
