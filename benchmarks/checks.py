"""What the benchmarks' command lines refuse alike, and what they take where nothing is said."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from benchmarks.workload import Cell, Sizes
from dasvit.run.settings import require

__all__ = [
    "check_out",
    "check_positive",
    "check_ratios",
    "check_seconds",
    "check_some",
    "default_precision",
    "default_sizes",
]


def check_out(path: Path) -> None:
    """Refuse a folder as the file of results.

    Raises:
        ValueError: as said.
    """
    require(not path.is_dir(), f"out must be a file, but {path} is a folder")


def check_seconds(args: object, *names: str) -> None:
    """Refuse times that are negative or not a number.

    Raises:
        ValueError: as said.
    """
    for name in names:
        value = getattr(args, name)
        require(value >= 0, f"{name} must be >= 0, but got {value}")


def check_some(args: object, **known: Collection[Any]) -> None:
    """Refuse settings that are not one or more of the values known, each once.

    Raises:
        ValueError: as said.
    """
    for name, allowed in known.items():
        values = getattr(args, name)
        require(
            len(values) > 0 and set(values) <= set(allowed),
            f"{name} must be some of {sorted(allowed)}, but got {values}",
        )
        _check_once(name, values)


def check_positive(args: object, *names: str) -> None:
    """Refuse settings, or lists of them, that are 0 or less; a list names each once.

    Raises:
        ValueError: as said.
    """
    for name in names:
        value = getattr(args, name)
        values = value if isinstance(value, tuple) else (value,)
        require(all(v > 0 for v in values), f"{name} must be positive, but got {value}")
        _check_once(name, values)


def _check_once(name: str, values: tuple[Any, ...]) -> None:
    require(len(set(values)) == len(values), f"{name} must name each once, but got {values}")


def check_ratios(ratios: Iterable[float], sizes: Sizes) -> None:
    """Refuse token ratios, a width or an image that no search could have.

    Raises:
        ValueError: as said.
    """
    ratios = tuple(ratios)
    require(len(ratios) > 0, "ratios must name at least one λ")
    _check_once("ratios", ratios)
    for ratio in ratios:
        Cell(stage=1, token_ratio=ratio, batch_size=1, order=1).config(sizes)


def default_sizes(*, gpu: bool, dim: int = 0, patches: int = 0) -> Sizes:
    """The paper's network on a GPU, a small one on a CPU; `dim` and `patches` a side where given.

    Raises:
        ValueError: one that is negative.
    """
    require(
        min(dim, patches) >= 0,
        f"dim and patches must be >= 0, but got (dim={dim}, patches={patches})",
    )
    patch, side, width = (16, 14, 768) if gpu else (4, 8, 192)
    return Sizes(dim=dim or width, image_size=(patches or side) * patch, patch_size=patch)


def default_precision(precision: str, *, gpu: bool) -> str:
    """What "auto" stands for: bf16 on a GPU, fp32 on a CPU."""
    if precision != "auto":
        return precision
    return "bf16" if gpu else "fp32"
