"""Modules of a user's own, which register operations and methods when they are imported."""

import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["load_plugins", "plugins_end_here", "plugins_for", "registry"]

_REGISTRIES: list[dict[str, Any]] = []
_loaded: set[str] = set()
"""Top-level packages of what was loaded as plug-ins."""
_brought: dict[str, set[str]] = {}
"""What came into the registers while a plug-in was imported."""


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
        known, before = module in sys.modules, _registered()
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises
            raise ValueError(
                f"plugins: cannot import {module!r} ({type(error).__name__}: {error}); is it "
                "installed or on PYTHONPATH?"
            ) from error
        if not known:
            _brought[module] = _registered() - before


def plugins_for(modules: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """Those of some plug-ins that may have registered one of the names: one that was imported
    before it was loaded as a plug-in may have registered anything."""
    wanted = set(names)
    return tuple(m for m in modules if wanted & _brought.get(m, wanted))


def _registered() -> set[str]:
    return {name for register in _REGISTRIES for name in register}


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
