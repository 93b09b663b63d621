"""An outer space of one's own: `--space FILE.py:function`, loaded and checked before any trial."""

import hashlib
import itertools
import math
from collections.abc import Collection
from typing import Any

from ray.tune.search import sample

from dasvit.run.files import first_line
from dasvit.search.config import SearchConfig
from tune.own_file import call_own, parts
from tune.space import to_search_config

__all__ = ["check_space", "identify_space", "load_space"]

MAX_CHOICES = 100
"""Values of one choice: each is tried once, with each of a choice that it is bound to."""


def load_space(where: str, search: SearchConfig, *, fixed: Collection[str]) -> dict[str, Any]:
    """The domains that the user's function returns, without those of settings that are fixed.

    The function is called as `outer_space` is: `function(search, fixed=fixed)`. The file is the
    user's own program and runs as one.

    Args:
        where: `FILE.py:function`.
        search: the settings that the sweep starts from.
        fixed: names of settings given on the command line.

    Raises:
        ValueError: one line: no such file or function, an error in it, or what `check_space`
            refuses.
    """
    form = "the function takes (search, *, fixed) and returns a Tune domain by name"
    space = call_own("--space", where, form, search, fixed=fixed)
    if not isinstance(space, dict):
        raise ValueError(
            f"--space {where}: returned {type(space).__name__}, not a dictionary of Tune domains"
        )
    ours = [search.method.outer_space(weight_lr=search.weight_lr, fixed=f) for f in ((), fixed)]
    gone = set(fixed) | (ours[0].keys() - ours[1].keys())
    space = {name: domain for name, domain in space.items() if name not in gone}
    check_space(space, search, where=where)
    return space


def identify_space(where: str) -> str:
    """`FILE.py:function` with the absolute path and the file's hash: other contents, other sweep.

    Raises:
        ValueError: there is no such file.
    """
    path, function = parts("--space", where)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return f"{path}:{function} sha256={digest}"


def check_space(space: dict[str, Any], search: SearchConfig, *, where: str) -> None:
    """Refuse a space of which some draw could not run.

    Every end of every domain must give a `SearchConfig`; of settings that bound each other, in
    every combination.

    Raises:
        ValueError: an empty space, a name that is no outer setting, a value that is no domain, or
            an end that a search refuses; one line that names it.
    """
    method = search.method
    known = tuple(method.as_draw())
    if not space:
        raise ValueError(
            f"--space {where}: nothing is left to vary; known names: {', '.join(known)}"
        )
    for name in space:
        if name not in known:
            raise ValueError(
                f"--space {where}: {name!r} is not a setting that a sweep varies; known: "
                f"{', '.join(known)}"
            )
    ends = {name: _ends(name, domain, where) for name, domain in space.items()}
    together = [name for name in method.tied if name in ends]
    draws = [
        dict(zip(together, values, strict=True))
        for values in itertools.product(*(ends[name] for name in together))
    ]
    draws += [{name: end} for name in ends if name not in together for end in ends[name]]
    for draw in draws:
        try:
            to_search_config(search, draw, search.seed)
        except (ValueError, TypeError) as error:
            drawn = ", ".join(f"{name}={value!r}" for name, value in draw.items())
            raise ValueError(f"--space {where}: the draw {drawn}: {first_line(error)}") from None


def _ends(name: str, domain: Any, where: str) -> list[Any]:
    """The values of a choice, or both ends of a range (the upper one is where it stops)."""
    if isinstance(domain, sample.Categorical):
        values = list(domain.categories)
        if not 1 <= len(values) <= MAX_CHOICES:
            raise ValueError(
                f"--space {where}: {name} is a choice of {len(values)} values; give it 1 to "
                f"{MAX_CHOICES}, or a range such as tune.uniform(low, high)"
            )
        return values
    if isinstance(domain, sample.Float | sample.Integer):
        low, high = domain.lower, domain.upper
        if math.isfinite(low) and math.isfinite(high):
            return [float(low), float(high)]
        raise ValueError(f"--space {where}: {name} has no bounds; use tune.uniform(low, high)")
    raise ValueError(
        f"--space {where}: {name} is {type(domain).__name__}, not a range or choice of Tune such "
        "as tune.uniform(0.25, 1.0)"
    )
