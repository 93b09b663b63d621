"""Python's garbage collector kept out of the way of imports and of training loops."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["lasting_imports"]


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Imports inside are not searched for garbage, neither while they load nor later.

    PyTorch and what it brings are some million objects that stay to the end. Going through them
    again and again took a quarter of their import's time and an eighth of a small search's. For
    programs, not for libraries: everything that is alive at the end of the block is meant.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # at the end modules are taken down as ever
        if enabled:
            gc.enable()
