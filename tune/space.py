"""The outer space: what the sweep varies, and how a draw becomes a `SearchConfig`."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ray import tune

from dasvit.search.config import OUTER_SETTINGS, SearchConfig
from tune.baseline import PLAIN_DARTS, is_plain_darts

__all__ = [
    "GAMMA_FRACTION",
    "OUTER_NAMES",
    "against_plain_darts",
    "first_draws",
    "make_room",
    "outer_space",
    "to_search_config",
]

OUTER_NAMES = tuple(name for name in OUTER_SETTINGS if name != "seed")
"""The settings a sweep varies; each draw runs on several seeds."""

GAMMA_FRACTION = "gamma_fraction"
"""Name of the draw that stands for gamma_max: see `outer_space`."""

# Bounds of gamma_fraction: gamma_max keeps a distance from gamma_min and stays below 1.
_FRACTION = (0.1, 0.9)


def outer_space(search: SearchConfig, *, fixed: Collection[str] = ()) -> dict[str, Any]:
    """The Tune domains of one sweep.

    gamma_min < gamma_max holds by construction, with bounds that do not move: gamma_min is drawn,
    and a fraction says how much of what is left above it gamma_max takes. (Bounds that depend on
    another draw would take gamma_max out of TPE's joint model.)

    Args:
        search: gives the fixed values, and the weights' learning rate, which is xi in second order.
        fixed: names of `OUTER_NAMES` to keep at `search`'s value.

    Returns:
        A domain by name, for all of `OUTER_NAMES` not in `fixed`; gamma_max goes by
        "gamma_fraction".

    Raises:
        ValueError: nothing is left to vary.
    """
    # A fixed gamma_max bounds gamma_min from above.
    top = search.gamma_max if "gamma_max" in fixed else 0.5
    space: dict[str, Any] = {
        # Share of the patch tokens kept: below a quarter, little of a small image is left.
        "token_ratio": tune.uniform(0.25, 1.0),
        # Bounds on a type's total weight (Eq. 18). At uniform weights over the eight candidates
        # MSA and MLP hold 3/8 each, so both penalties can bind.
        "gamma_min": tune.uniform(0.0, 0.9 * top),
        GAMMA_FRACTION: tune.uniform(*_FRACTION),
        # Strengths of the penalties (Eq. 16, 18, 19): over two decades, around 1.
        "zeta1": tune.loguniform(0.1, 10.0),
        "zeta2": tune.loguniform(0.1, 10.0),
        "skip_weight": tune.loguniform(0.01, 10.0),
        "type_weight": tune.loguniform(0.01, 10.0),
        # First order, or second order with the weights' own learning rate (DARTS).
        "xi": tune.choice([0.0, search.weight_lr]),
    }
    draws = {"gamma_max": GAMMA_FRACTION}
    for name in fixed:
        space.pop(draws.get(name, name), None)
    if not space:
        raise ValueError(
            f"every setting of the outer space is fixed ({', '.join(OUTER_NAMES)}), so there is "
            "nothing to sweep; leave at least one of them away, or run `python -m dasvit search`"
        )
    return space


def make_room(
    search: SearchConfig, *, gamma_min: float | None = None, gamma_max: float | None = None
) -> SearchConfig:
    """`search` with its other bound moved, where one that is about to be fixed leaves it no room.

    The sweep draws the other one; its own value is only where the first draw would lie. The
    distance of the two keeps its share: gamma_min of gamma_max, or gamma_max of what is above
    gamma_min. The bound that is given is not put in.

    Args:
        gamma_min, gamma_max: the one that is given; with none or both, nothing moves.

    Raises:
        ValueError: no value of the other bound fits.
    """
    rule = "0 <= gamma_min < gamma_max <= 1 must hold"
    if gamma_max is not None and gamma_min is None and gamma_max <= search.gamma_min:
        if not gamma_max > 0:
            raise ValueError(f"--gamma-max {gamma_max:g} leaves --gamma-min no room: {rule}")
        moved = gamma_max * search.gamma_min / search.gamma_max
        return dataclasses.replace(search, gamma_min=moved)
    if gamma_min is not None and gamma_max is None and gamma_min >= search.gamma_max:
        if not gamma_min < 1:
            raise ValueError(f"--gamma-min {gamma_min:g} leaves --gamma-max no room: {rule}")
        share = (search.gamma_max - search.gamma_min) / (1.0 - search.gamma_min)
        moved = gamma_min + share * (1.0 - gamma_min)
        return dataclasses.replace(search, gamma_max=moved)
    return search


def to_search_config(search: SearchConfig, sampled: Mapping[str, Any], seed: int) -> SearchConfig:
    """`search` with a draw from `outer_space` and a seed put in.

    Raises:
        ValueError: a combination that `SearchConfig` refuses.
    """
    values = {name: sampled[name] for name in OUTER_NAMES if name in sampled}
    if GAMMA_FRACTION in sampled:
        low = values.get("gamma_min", search.gamma_min)
        values["gamma_max"] = low + sampled[GAMMA_FRACTION] * (1.0 - low)
    return dataclasses.replace(search, **values, seed=seed)


def against_plain_darts(search: SearchConfig, fixed: Collection[str]) -> list[str]:
    """Settings that were given and keep plain DARTS out of a sweep."""
    return [
        name
        for name, value in PLAIN_DARTS.items()
        if name in fixed and getattr(search, name) != value
    ]


def first_draws(
    search: SearchConfig, names: Collection[str] | None = None, *, fixed: Collection[str] = ()
) -> list[dict[str, Any]]:
    """What every sweep begins with: `search` itself, and plain DARTS, its baseline.

    Both may lie outside the space: ours has no weight of 0, and one of the user's own may leave
    settings out, which plain DARTS sets all the same. There is one draw where `search` is plain
    DARTS already, or where a setting that was given is against it.

    Args:
        names: of the domains; by default those of `outer_space`.
        fixed: settings that were given.
    """
    values = {name: getattr(search, name) for name in OUTER_NAMES if name != "gamma_max"}
    values[GAMMA_FRACTION] = (search.gamma_max - search.gamma_min) / (1.0 - search.gamma_min)
    values["gamma_max"] = search.gamma_max
    names = outer_space(search, fixed=fixed) if names is None else names
    own = {name: values[name] for name in names}
    if is_plain_darts(values) or against_plain_darts(search, fixed):
        return [own]
    other = {
        name: value
        for name, value in PLAIN_DARTS.items()
        if name in names or getattr(search, name) != value
    }
    return [own, own | other]
