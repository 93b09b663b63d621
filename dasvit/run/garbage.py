"""Python's garbage collector kept out of the way of imports and of training loops."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["lasting_imports"]


@contextmanager
def lasting_imports() -> Iterator[None]:
    """The garbage collector leaves alone what is imported inside, then and later.

    PyTorch and what it brings are about a million objects that stay to the end. Going through them
    again and again took a quarter of the time of their import and an eighth of a small search's.
    For programs, not for libraries: it holds for all objects alive at the end of the block.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # so that Python takes modules down as usual
        if enabled:
            gc.enable()
