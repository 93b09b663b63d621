"""Where a sweep draws a setting from."""

from typing import Any, NamedTuple

__all__ = ["Choice", "Domain", "LogUniform", "Uniform"]


class Uniform(NamedTuple):
    """Any number between two, none more likely than another."""

    low: float
    high: float


class LogUniform(NamedTuple):
    """Any number between two, whose logarithm is uniform."""

    low: float
    high: float


class Choice(NamedTuple):
    """One of some values."""

    values: tuple[Any, ...]


Domain = Uniform | LogUniform | Choice
