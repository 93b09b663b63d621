"""Tune callbacks of one's own: `--callback FILE.py:function`, for W&B, MLflow and the like."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ray.tune import Callback

from tune.own_file import call_own

__all__ = ["callbacks_of", "own_callbacks"]

_where: ContextVar[str | None] = ContextVar("callback", default=None)


@contextmanager
def own_callbacks(where: str | None) -> Iterator[None]:
    """The phases in this `with` block have the user's callbacks; called once to see that it works.

    Args:
        where: `FILE.py:function`, or None for none.

    Raises:
        ValueError: as `callbacks_of`.
    """
    token = _where.set(where)
    try:
        callbacks_of("search")
        yield
    finally:
        _where.reset(token)


def callbacks_of(phase: str) -> list[Callback]:
    """New callbacks for a phase: "search", "check" or "retrain".

    Raises:
        ValueError: one line: no such file or function, an error in it, or no list of callbacks.
    """
    where = _where.get()
    if where is None:
        return []
    form = "the function takes (phase) and returns a list of Tune callbacks"
    made = call_own("--callback", where, form, phase)
    if not isinstance(made, list) or not all(isinstance(each, Callback) for each in made):
        raise ValueError(f"--callback {where}: returned {made!r:.200}; {form}")
    return made
