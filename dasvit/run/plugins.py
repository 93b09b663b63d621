"""Modules of a user's own, which register operations and methods when they are imported."""

import importlib
from collections.abc import Sequence

__all__ = ["load_plugins"]


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules that register operations or methods.

    Raises:
        ValueError: naming a module that cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a user's module raises
            raise ValueError(
                f"plugins: cannot import {module!r} ({type(error).__name__}: {error}); is it "
                "installed or on PYTHONPATH?"
            ) from error
