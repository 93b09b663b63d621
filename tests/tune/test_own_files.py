"""What a user's own file gives to a sweep: an outer space, and callbacks of Tune."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ray import tune

from dasvit.search.config import SearchConfig
from tune.own_callbacks import own_callbacks
from tune.own_space import check_space, identify_space, load_space
from tune.space import first_draws, outer_space

Write = Callable[[str], str]


@pytest.fixture
def own(tmp_path: Path) -> Write:
    """Writes a space's body into a file; FILE.py:function."""

    def write(body: str) -> str:
        path = tmp_path / "mine.py"
        head = "from ray import tune\n\n\ndef space(search, *, fixed=()):\n    "
        path.write_text(head + body)
        return f"{path}:space"

    return write


def test_an_own_space(own: Write, search_config: SearchConfig) -> None:
    where = own(
        "return {'token_ratio': tune.uniform(0.5, 1.0), 'xi': tune.choice([0.0, search.weight_lr])}"
    )
    space = load_space(where, search_config, fixed=())
    assert space["xi"].categories == [0.0, search_config.weight_lr]
    # What it leaves out stays as it is.
    [first, _] = first_draws(search_config, space)
    assert first == {"token_ratio": search_config.method.token_ratio, "xi": search_config.method.xi}
    assert set(load_space(where, search_config, fixed=("xi",))) == {"token_ratio"}
    before = identify_space(where)
    assert identify_space(own("return {}")) != before  # other contents are another space
    whole = {"skip_weight": tune.randint(0, 5), "zeta1": tune.quniform(0.5, 2.0, 0.5)}
    for good in (whole, outer_space(search_config)):
        check_space(good, search_config, where="here")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {'lambda': tune.uniform(0.1, 1)}", "'lambda' is not a setting.*token_ratio"),
        ("return {'token_ratio': 0.5}", "token_ratio is float, not a range or choice"),
        ("return {'zeta1': tune.randn(1, 2)}", "zeta1 has no bounds"),
        (
            "return {'gamma_min': tune.uniform(0, 0.4), 'gamma_max': tune.uniform(0.3, 0.9)}",
            "gamma_min=0.4, gamma_max=0.3: 0 <= gamma_min < gamma_max",
        ),
        (
            "return {'gamma_max': tune.uniform(0.6, 1), 'gamma_fraction': tune.uniform(0.1, 1)}",
            "gamma_max or gamma_fraction, not both",
        ),
        ("return {'gamma_fraction': tune.uniform(0, 1)}", r"must lie in \(0, 1\]"),
        ("return {}", "nothing is left to vary"),
        ("return {'xi': tune.choice([])}", "xi is a choice of 0 values; give it 1 to 100"),
        ("return ['xi']", "returned list, not a dictionary"),
        ("return {'xi': 1 / 0}", "ZeroDivisionError"),
        ("return {", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_bad_space_is_one_line(
    own: Write, search_config: SearchConfig, body: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_space(own(body), search_config, fixed=())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--space ")


def test_where_it_cannot_be(own: Write, search_config: SearchConfig) -> None:
    file = own("return {}\n\n\ndef nothing():\n    return {}\n").removesuffix(":space")
    for where, message in (
        ("space", "must be FILE.py:function"),
        ("mine.txt:space", "must be FILE.py:function"),
        ("other.py:space", "there is no file"),
        (f"{file}:nix", "has no function nix"),
        (f"{file}:nothing", r"TypeError.*takes \(search, \*, fixed\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_space(where, search_config, fixed=())


CALLBACKS = """
from ray.tune import Callback


class Mine(Callback):
    def __init__(self, phase):
        self.phase = phase


def two(phase):
    return [Mine(phase), Callback()]


def lone(phase):
    return Mine(phase)


def names(phase):
    return ["wandb"]
"""


def test_own_callbacks(tmp_path: Path) -> None:
    """Each phase has new ones; anything else is refused in one line."""
    assert own_callbacks(None, "search") == []
    path = tmp_path / "mine.py"
    path.write_text(CALLBACKS)
    made = [own_callbacks(f"{path}:two", phase) for phase in ("search", "retrain")]
    assert [vars(own) for own, _ in made] == [{"phase": "search"}, {"phase": "retrain"}]
    for function, message in (
        ("lone", "returned <.*Mine object at .*; the function takes"),
        ("names", r"returned \['wandb'\]; the function takes \(phase\) and returns a list"),
    ):
        with pytest.raises(ValueError, match=f"^--callback .*{message}") as caught:
            own_callbacks(f"{path}:{function}", "search")
        assert "\n" not in str(caught.value)
