"""What all settings have in common: checks of their values, and the way to JSON and back."""

import dataclasses
import math
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

__all__ = [
    "Range",
    "SettingError",
    "check_settings",
    "config_from_dict",
    "config_to_dict",
    "differences",
    "require",
    "with_defaults",
]

ConfigT = TypeVar("ConfigT")

_LARGEST = 2**31 - 1
"""Of whole numbers without a `Range` that says otherwise."""


class SettingError(ValueError):
    """A value that a setting refuses; the message has the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise `SettingError` unless the condition holds."""
    if not condition:
        raise SettingError(message)


class Range:
    """The numbers that a setting takes, declared with its type, `Annotated[int, Range("[1, 9]")]`.

    Args:
        interval: as in mathematics, "[1, 1000]" or "(0, inf)".
        note: what the message of a refusal adds, "1 selects all tokens" say.
    """

    def __init__(self, interval: str, note: str = "") -> None:
        self.interval, self.note = interval, note
        self.low, self.high = (float(end) for end in interval[1:-1].split(","))
        self._open = interval[0] == "(", interval[-1] == ")"

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self._open[0] else self.low <= value
        return above and (value < self.high if self._open[1] else value <= self.high)

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"lie in {self.interval}"
        return "be positive" if self._open[0] else f"be at least {self.low:g}"


def check_settings(config: Any) -> None:
    """Check every field of a dataclass of settings against its type: numbers are finite and in
    their `Range`, choices are among those of their `Literal`, tuples hold what they should.

    Raises:
        SettingError: naming the first field that is not.
    """
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        hint = _hints(type(config))[f.name]
        if get_origin(hint) is tuple:
            _check_tuple(f.name, value, get_args(hint))
        else:
            _check_value(f.name, value, hint)


def _check_value(name: str, value: Any, hint: Any) -> None:
    kind, bounds = _unwrapped(hint)
    if get_origin(kind) is Literal:
        *most, last = map(str, get_args(kind))
        choices = f"{', '.join(most)} or {last}" if most else last
        require(value in get_args(kind), f"{name} must be {choices}, but got {value!r}")
    elif kind in (int, float):
        _check_number(name, value, kind, bounds)


def _check_tuple(name: str, values: Any, kinds: tuple[Any, ...]) -> None:
    several = isinstance(values, tuple | list)
    require(several, f"{name} must be several values in a tuple, but got {values!r}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    wanted = f"{name} must have {len(kinds)} values, but got {values!r}"
    require(len(values) == len(kinds), wanted)
    for value, hint in zip(values, kinds, strict=True):
        if hint is str:
            require(isinstance(value, str), f"{name} must hold texts, but got {value!r}")
        _check_value(name, value, hint)


def _unwrapped(hint: Any) -> tuple[Any, Range | None]:
    """`Annotated[float, Range(...)]` as its two parts."""
    extras: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    bounds = next((extra for extra in extras if isinstance(extra, Range)), None)
    return get_args(hint)[0] if extras else hint, bounds


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _check_number(name: str, value: Any, kind: type, bounds: Range | None) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        whole = number and isinstance(value, int)
        require(whole, f"{name} must be a whole number, but got {value!r}")
        limit = bounds.high if bounds and bounds.high < math.inf else _LARGEST
        shown = value if abs(value) < 10**20 else "far more"
        require(value <= limit, f"{name} must be at most {limit:.0f}, but got {shown}")
    else:
        finite = number and math.isfinite(value)
        require(finite, f"{name} must be a finite number, but got {value!r}")
    if bounds is not None:
        note = f"; {bounds.note}" if bounds.note else ""
        require(value in bounds, f"{name} must {bounds}, but got {value}{note}")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dictionary of a configuration; where a part has a name ("dasvit", "cell"), that
    comes first."""
    values: dict[str, Any] = {"name": config.name} if hasattr(type(config), "name") else {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = config_to_dict(value)
        values[f.name] = list(value) if isinstance(value, tuple) else value
    return values


def with_defaults(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version, with those that it did not know at their defaults: by default
    a new setting computes what was computed before there was one."""
    found = {
        name: with_defaults(value, known)
        if isinstance(value, dict) and isinstance(known := defaults.get(name), dict)
        else value
        for name, value in saved.items()
    }
    return found | {name: defaults[name] for name in defaults if name not in found}


def config_from_dict(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The inverse of `config_to_dict`. A part whose class has a method `named` is of the class that
    it gives for the part's name.

    Raises:
        ValueError: a key that is no setting, or a value that fails the checks.
    """
    hints, known = _hints(kind), {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prepared: dict[str, Any] = {}
    for name, value in values.items():
        part: Any = hints.get(name)
        if dataclasses.is_dataclass(part):
            require(isinstance(value, dict), f"{name} must be an object: {value!r}")
            if hasattr(part, "name"):
                value = dict(value)
                called = value.pop("name", part.name)
                part = part.named(called) if hasattr(part, "named") else part
            value = config_from_dict(part, value)
        prepared[name] = tuple(value) if isinstance(value, list) else value
    unknown = sorted(set(values) - known)
    require(not unknown, f"unknown settings {unknown} for {kind.__name__}")
    try:
        return kind(**prepared)
    except TypeError as error:  # text for a number, null for a list
        raise SettingError(f"malformed settings for {kind.__name__}: {error}") from None


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Where two dictionaries of settings differ, each as "dim: 8 there, 16 now"; a nested setting
    goes by its own name, as on a command line."""
    there, now = _flat(saved), _flat(current)
    return [
        f"{name}: {there.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    ]


def _flat(settings: dict[str, Any], part: str = "") -> dict[str, Any]:
    """`{"method": {"name": "darts", "xi": 0}}` is `{"method": "darts", "xi": 0}`; a sweep's
    retraining keeps its prefix."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            prefix = "retrain." if name == "retrain" else ""
            flat |= {prefix + key: each for key, each in _flat(value, name).items()}
        else:
            flat[part if part and name == "name" else name] = value
    return flat
