"""Tune callbacks of one's own: `--callback FILE.py:function`, for W&B, MLflow and the like."""

from ray.tune import Callback

from tune.own_file import call_own

__all__ = ["own_callbacks"]


def own_callbacks(where: str | None, phase: str) -> list[Callback]:
    """New callbacks for a phase: "search", "ladder" or "retrain".

    Args:
        where: `FILE.py:function`, or None for none.

    Raises:
        ValueError: one line: no such file or function, an error in it, or no list of callbacks.
    """
    if where is None:
        return []
    form = "the function takes (phase) and returns a list of Tune callbacks"
    made = call_own("--callback", where, form, phase)
    if not isinstance(made, list) or not all(isinstance(each, Callback) for each in made):
        raise ValueError(f"--callback {where}: returned {made!r:.200}; {form}")
    return made
