from typing import Any, ClassVar

import pytest
from support.plugin_method import BetaDARTS

from dasvit.methods import DARTS, Uniform
from dasvit.search.config import SearchConfig
from tune.space import first_draws, outer_space, to_search_config


def draw(space: dict, seed: int) -> dict:
    """One random draw of Tune's domains."""
    import numpy as np

    state = np.random.RandomState(seed)
    return {name: domain.sample(random_state=state) for name, domain in space.items()}


def test_every_draw_is_a_valid_configuration(search_config: SearchConfig) -> None:
    space = outer_space(search_config)
    drawn = [to_search_config(search_config, draw(space, seed), seed) for seed in range(100)]
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
    for method, names in ((DARTS, {"xi"}), (BetaDARTS, {"xi", "beta"})):
        config = search_config.replaced(method=method.like(search_config.method))
        space = outer_space(config)
        assert set(space) == names
        got = to_search_config(config, draw(space, 1), 5)
        assert got.seed == 5 and isinstance(got.method, method)
        with pytest.raises(ValueError, match="nothing to sweep"):
            outer_space(config, fixed=tuple(names))


def test_a_draw_that_no_setting_takes_is_refused(search_config: SearchConfig) -> None:
    class Unnamed(DARTS):
        def outer_space(self, **options: Any) -> dict:
            return super().outer_space(**options) | {"warmth": Uniform(0.0, 1.0)}

    with pytest.raises(ValueError, match="method darts names warmth, which is no setting of it"):
        outer_space(search_config.replaced(method=Unnamed()))


def test_a_baseline_that_is_never_drawn_is_not_proposed(search_config: SearchConfig) -> None:
    """Unless the sweep starts from it."""

    class Still(BetaDARTS):
        baseline: ClassVar[dict[str, float]] = {"xi": 0.0, "beta": 0.0}

        def outer_space(self, **options: Any) -> dict:
            return DARTS.outer_space(self, **options)

    for beta, count in ((50.0, 1), (0.0, 2)):
        config = search_config.replaced(method=Still(beta=beta, xi=0.1))
        draws = first_draws(config)
        assert len(draws) == count
        assert [config.method.is_baseline(draw) for draw in draws] == [False, True][:count]


def test_a_fixed_setting_stays_as_given(search_config: SearchConfig) -> None:
    config = search_config.replaced(token_ratio=0.31, gamma_max=0.4)
    space = outer_space(config, fixed=("token_ratio", "gamma_max"))
    assert "token_ratio" not in space
    for seed in range(50):
        got = to_search_config(config, draw(space, seed), seed).method
        assert (got.token_ratio, got.gamma_max) == (0.31, 0.4)
        assert got.gamma_min < 0.4


def test_a_sweep_begins_with_the_configuration_itself(search_config: SearchConfig) -> None:
    own = first_draws(search_config)[0]
    got = to_search_config(search_config, own, search_config.seed)
    assert got.method.gamma_max == pytest.approx(search_config.method.gamma_max)
    assert got.replaced(gamma_max=search_config.method.gamma_max) == search_config


def test_then_comes_plain_darts(search_config: SearchConfig) -> None:
    second_order = search_config.replaced(token_ratio=0.5, xi=0.1)
    [_, plain] = first_draws(second_order)
    got = to_search_config(second_order, plain, 0).method
    assert (got.token_ratio, got.skip_weight, got.type_weight, got.xi) == (1.0, 0.0, 0.0, 0.0)
    assert got.is_baseline(got.outer_settings())
    assert not got.is_baseline(second_order.outer_settings)


def test_plain_darts_is_not_proposed_where_it_cannot_be(search_config: SearchConfig) -> None:
    assert len(first_draws(search_config, fixed=("zeta1", "gamma_max"))) == 2
    assert len(first_draws(search_config, fixed=("token_ratio",))) == 1
    plain = search_config.replaced(**search_config.method.baseline)
    assert len(first_draws(plain)) == 1  # the first is that
    [own, darts] = first_draws(plain.replaced(xi=0.1), fixed=("token_ratio",))
    assert "token_ratio" not in own and darts["xi"] == 0.0
