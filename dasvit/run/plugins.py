"""Modules of a user's own, which register operations and methods when they are imported."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["load_plugins", "plugins_end_here", "registry"]

_REGISTRIES: list[dict[str, Any]] = []
_loaded: set[str] = set()
"""Top-level packages of what was loaded as plug-ins."""


def registry() -> dict[str, Any]:
    """An empty register, by name, that plug-ins may add to."""
    _REGISTRIES.append({})
    return _REGISTRIES[-1]


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules that register operations or methods.

    Raises:
        ValueError: naming a module that cannot be imported.
    """
    for module in modules:
        _loaded.add(module.partition(".")[0])
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises
            raise ValueError(
                f"plugins: cannot import {module!r} ({type(error).__name__}: {error}); is it "
                "installed or on PYTHONPATH?"
            ) from error


@contextmanager
def plugins_end_here() -> Iterator[None]:
    """What plug-ins register inside the block is forgotten after it, and so are their modules: they
    register again when they are loaded again."""
    modules, contents = set(sys.modules), [dict(register) for register in _REGISTRIES]
    try:
        yield
    finally:
        for register, content in zip(_REGISTRIES, contents, strict=False):
            register.clear()
            register.update(content)
        for name in sys.modules.keys() - modules:
            if name.partition(".")[0] in _loaded - {"dasvit", "tune"}:
                del sys.modules[name]
