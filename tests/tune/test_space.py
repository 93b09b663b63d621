import dataclasses

import pytest

from dasvit.search.config import SearchConfig
from tune.baseline import PLAIN_DARTS, is_plain_darts
from tune.space import OUTER_NAMES, first_draws, outer_space, to_search_config


def draw(space: dict, seed: int) -> dict:
    """One random draw of Tune's domains."""
    import numpy as np

    state = np.random.RandomState(seed)
    return {name: domain.sample(random_state=state) for name, domain in space.items()}


def test_every_draw_is_a_valid_configuration(search_config: SearchConfig) -> None:
    space = outer_space(search_config)
    for seed in range(200):
        config = to_search_config(search_config, draw(space, seed), seed)
        assert 0 <= config.gamma_min < config.gamma_max < 1
        assert config.xi in (0.0, search_config.weight_lr)
        assert config.seed == seed


def test_the_corners_are_valid(search_config: SearchConfig) -> None:
    space = outer_space(search_config)
    for end in ("lower", "upper"):
        corner = {n: getattr(d, end) for n, d in space.items() if hasattr(d, end)}
        to_search_config(search_config, {**corner, "xi": 0.0}, 0)


def test_all_eight_settings_vary(search_config: SearchConfig) -> None:
    space = outer_space(search_config)
    drawn = [to_search_config(search_config, draw(space, seed), 0) for seed in range(8)]
    names = [field.name for field in dataclasses.fields(search_config)]
    differ = {name for name in names if len({str(getattr(c, name)) for c in drawn}) > 1}
    assert differ == set(OUTER_NAMES)


def test_a_fixed_setting_stays_as_given(search_config: SearchConfig) -> None:
    config = dataclasses.replace(search_config, token_ratio=0.31, gamma_max=0.4)
    space = outer_space(config, fixed=("token_ratio", "gamma_max"))
    assert "token_ratio" not in space
    for seed in range(50):
        got = to_search_config(config, draw(space, seed), seed)
        assert (got.token_ratio, got.gamma_max) == (0.31, 0.4)
        assert got.gamma_min < 0.4


def test_nothing_left_to_vary_is_refused(search_config: SearchConfig) -> None:
    with pytest.raises(ValueError, match="nothing to sweep"):
        outer_space(search_config, fixed=OUTER_NAMES)


def test_a_sweep_begins_with_the_configuration_itself(search_config: SearchConfig) -> None:
    own = first_draws(search_config)[0]
    got = to_search_config(search_config, own, search_config.seed)
    assert got.gamma_max == pytest.approx(search_config.gamma_max)
    assert dataclasses.replace(got, gamma_max=search_config.gamma_max) == search_config


def test_then_comes_plain_darts(search_config: SearchConfig) -> None:
    second_order = dataclasses.replace(search_config, token_ratio=0.5, xi=0.1)
    [_, plain] = first_draws(second_order)
    got = to_search_config(second_order, plain, 0)
    assert (got.token_ratio, got.skip_weight, got.type_weight, got.xi) == (1.0, 0.0, 0.0, 0.0)
    assert is_plain_darts(dataclasses.asdict(got))
    assert not is_plain_darts(dataclasses.asdict(second_order))


def test_plain_darts_is_not_proposed_where_it_cannot_be(search_config: SearchConfig) -> None:
    assert len(first_draws(search_config, fixed=("zeta1", "gamma_max"))) == 2
    assert len(first_draws(search_config, fixed=("token_ratio",))) == 1
    plain = dataclasses.replace(search_config, **PLAIN_DARTS)
    assert len(first_draws(plain)) == 1  # the first is that
    [own, darts] = first_draws(dataclasses.replace(plain, xi=0.1), fixed=("token_ratio",))
    assert "token_ratio" not in own and darts["xi"] == 0.0
