"""Checks that all settings have in common: numbers that are numbers, of a size that can be."""

import dataclasses
import math
from typing import Any

__all__ = ["SettingError", "check_numbers", "require"]

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
