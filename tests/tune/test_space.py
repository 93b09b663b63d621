"""What a sweep varies, and what it begins with."""

from typing import Any

import numpy as np
import pytest
from support.plugin_method import Decided

from dasvit.methods import DARTS, Uniform
from dasvit.search.config import SearchConfig
from tune.space import first_draws, outer_space, to_search_config


def draw(space: dict[str, Any], seed: int) -> dict[str, Any]:
    """One random draw of Tune's domains."""
    state = np.random.RandomState(seed)
    return {name: domain.sample(random_state=state) for name, domain in space.items()}


def test_every_draw_is_a_valid_configuration(search_config: SearchConfig) -> None:
    space = outer_space(search_config)
    drawn = [to_search_config(search_config, draw(space, seed), seed) for seed in range(50)]
    for seed, config in enumerate(drawn):
        assert 0 <= config.method.gamma_min < config.method.gamma_max < 1
        assert config.method.xi in (0.0, search_config.weight_lr)
        assert config.seed == seed
    outer = search_config.method.outer
    assert all(len({config.setting(name) for config in drawn}) > 1 for name in outer)
    same = [config.replaced(**search_config.outer_settings) for config in drawn]
    assert set(same) == {search_config}


def test_the_method_says_what_varies(search_config: SearchConfig) -> None:
    """Plain DARTS has one outer setting; a method from outside the package names its own."""
    for method, names in ((DARTS, {"xi"}), (Decided, {"xi", "decision"})):
        config = search_config.replaced(method=method.like(search_config.method))
        space = outer_space(config)
        assert set(space) == names
        assert isinstance(to_search_config(config, draw(space, 1), 5).method, method)
        with pytest.raises(ValueError, match="nothing to sweep"):
            outer_space(config, fixed=tuple(names))

    class Unnamed(DARTS):
        def outer_space(self, **options: Any) -> dict:
            return super().outer_space(**options) | {"warmth": Uniform(0.0, 1.0)}

    with pytest.raises(ValueError, match="method darts names warmth, which is no setting of it"):
        outer_space(search_config.replaced(method=Unnamed()))


def test_a_sweep_begins_with_its_own_settings_and_plain_darts(search_config: SearchConfig) -> None:
    """One stage, all tokens, no penalty, first order, whatever the sweep starts from or keeps."""
    second_order = search_config.replaced(token_ratio=0.5, xi=0.1)
    own, plain = first_draws(second_order, outer_space(second_order, fixed=("token_ratio",)))
    got = to_search_config(second_order, own, second_order.seed)
    gamma = second_order.method.gamma_max
    assert got.method.gamma_max == pytest.approx(gamma)
    assert got.replaced(gamma_max=gamma) == second_order
    got = to_search_config(second_order, plain, 7)
    assert (type(got.method), got.method.xi, got.seed) == (DARTS, 0.0, 7)
    assert len(got.stages) == 1 and got.total_epochs == second_order.total_epochs
    assert got == second_order.replaced(seed=7).plain_darts
    assert len(first_draws(got, outer_space(got))) == 1  # the first is that
    decided = search_config.replaced(method=Decided.like(search_config.method))
    [_, plain] = first_draws(decided, outer_space(decided))
    assert type(to_search_config(decided, plain, 0).method) is DARTS
