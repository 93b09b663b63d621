from pathlib import Path

import pytest
from ray import tune

from dasvit.search.config import SearchConfig
from tune.own_space import check_space, identify_space, load_space
from tune.space import first_draws, outer_space

HEAD = "from ray import tune\n\n\ndef space(search, *, fixed=()):\n    "


@pytest.fixture
def own(tmp_path: Path):
    def write(body: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(HEAD + body)
        return f"{path}:space"

    return write


def test_an_own_space(own, search_config: SearchConfig) -> None:
    where = own(
        "return {'token_ratio': tune.uniform(0.5, 1.0), 'xi': tune.choice([0.0, search.weight_lr])}"
    )
    space = load_space(where, search_config, fixed=())
    assert set(space) == {"token_ratio", "xi"}
    assert space["xi"].categories == [0.0, search_config.weight_lr]
    # What it leaves out stays as it is.
    [first, _] = first_draws(search_config, space)
    assert first == {"token_ratio": search_config.method.token_ratio, "xi": search_config.method.xi}
    assert set(load_space(where, search_config, fixed=("xi",))) == {"token_ratio"}


def test_the_default_space_passes(search_config: SearchConfig) -> None:
    check_space(outer_space(search_config), search_config, where="ours")


def test_other_contents_are_another_space(own) -> None:
    first = identify_space(own("return {'xi': tune.choice([0.0])}"))
    second = identify_space(own("return {'xi': tune.choice([0.1])}"))
    assert first != second
    assert first.split("=")[0] == second.split("=")[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {'lambda': tune.uniform(0.1, 1)}", "'lambda' is not a setting.*token_ratio"),
        ("return {'seed': tune.randint(0, 9)}", "'seed' is not a setting"),
        ("return {'token_ratio': tune.uniform(0.5, 1.5)}", "token_ratio=1.5: token_ratio"),
        ("return {'token_ratio': tune.uniform(0.0, 1.0)}", "token_ratio=0.0: token_ratio"),
        ("return {'xi': tune.choice([0.0, 'big'])}", "xi='big'"),
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
        ("return {'xi': tune.choice(range(10**6))}", "xi is a choice of 1000000 values"),
        ("return ['xi']", "returned list, not a dictionary"),
        ("return {'xi': 1 / 0}", "ZeroDivisionError"),
        ("return {", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_bad_space_is_one_line(own, search_config: SearchConfig, body: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_space(own(body), search_config, fixed=())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--space ")


def test_where_it_cannot_be(own, tmp_path: Path, search_config: SearchConfig) -> None:
    good = own("return {'xi': tune.choice([0.0])}")
    for where, message in (
        ("space", "must be FILE.py:function"),
        ("mine.txt:space", "must be FILE.py:function"),
        (f"{tmp_path}/other.py:space", "there is no file"),
        (good.replace(":space", ":nix"), "has no function nix"),
    ):
        with pytest.raises(ValueError, match=message):
            load_space(where, search_config, fixed=())
    Path(tmp_path / "mine.py").write_text("def space():\n    return {}\n")
    with pytest.raises(ValueError, match=r"TypeError.*takes \(search, \*, fixed\)"):
        load_space(good, search_config, fixed=())


def test_tune_domains_are_what_is_meant(search_config: SearchConfig) -> None:
    whole = {"skip_weight": tune.randint(0, 5), "zeta1": tune.quniform(0.5, 2.0, 0.5)}
    check_space(whole, search_config, where="here")
