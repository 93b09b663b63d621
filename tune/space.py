"""The outer space: what a sweep varies, as Tune domains; and from a draw to a `SearchConfig`."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ray import tune

from dasvit.methods import Choice, LogUniform, Uniform
from dasvit.search.config import SearchConfig

__all__ = ["METHOD", "PLAIN_DARTS", "first_draws", "outer_space", "to_search_config"]

PLAIN_DARTS = "plain_darts"
"""Key of the draw that stands for `SearchConfig.plain_darts`."""
METHOD = "method"
"""Key of the method's name, in a draw of a sweep in which methods take turns."""


def outer_space(search: SearchConfig, *, fixed: Collection[str] = ()) -> dict[str, Any]:
    """The Tune domains of one sweep: what the method names (`DARTS.outer_space`).

    Args:
        search: gives the fixed values, and the weights' learning rate, which is ξ in second order.
        fixed: settings to keep at `search`'s value.

    Raises:
        ValueError: nothing is left to vary, or the method names what it cannot be given.
    """
    method = search.method
    space = method.outer_space(weight_lr=search.weight_lr, fixed=fixed)
    domains = {name: domain for name, domain in space.items() if name not in fixed}
    if not domains:
        raise ValueError(
            f"every setting of the outer space is fixed ({', '.join(method.outer)}), so "
            "there is nothing to sweep; leave at least one of them away, or run `dasvit search`"
        )
    if foreign := [name for name in domains if name not in method.as_draw()]:
        raise ValueError(
            f"outer_space of method {method.name} names {', '.join(foreign)}, which is no setting "
            "of it; rename that, or say in drawn and as_draw what it stands for"
        )
    return {name: _tune_domain(domain) for name, domain in domains.items()}


def _tune_domain(domain: Uniform | LogUniform | Choice) -> Any:
    if isinstance(domain, Choice):
        return tune.choice(list(domain.values))
    kind = tune.uniform if isinstance(domain, Uniform) else tune.loguniform
    return kind(domain.low, domain.high)


def to_search_config(search: SearchConfig, sampled: Mapping[str, Any], seed: int) -> SearchConfig:
    """`search` with a draw from `outer_space` and a seed put in; or plain DARTS with the seed.

    Raises:
        ValueError: a combination that the method refuses.
    """
    if sampled.get(PLAIN_DARTS):
        return dataclasses.replace(search.plain_darts, seed=seed)
    draw = {name: sampled[name] for name in search.method.as_draw() if name in sampled}
    return dataclasses.replace(search, method=search.method.drawn(draw), seed=seed)


def first_draws(search: SearchConfig, names: Collection[str]) -> list[dict[str, Any]]:
    """What every sweep begins with: `search` itself, and plain DARTS, which it is compared with.
    The second is outside the space; there is one draw where `search` is plain DARTS already.

    Args:
        search: the settings that the sweep starts from.
        names: of the domains.
    """
    values = search.method.as_draw()
    own = {name: values[name] for name in names}
    return [own] if search == search.plain_darts else [own, {PLAIN_DARTS: True}]
