import pytest

from tune.aggregate import rank_configs
from tune.importance import importances


def test_what_matters_comes_first(search_trial, make_chain) -> None:
    g = make_chain("msa_h2", "mlp_r3")
    trials = [
        search_trial(
            i, 0, g, 0.5 + 0.4 * ((i * 7) % 16) / 16, 0.9,
            settings={"zeta1": 0.1 * 1.3 ** ((i * 7) % 16),
                      "token_ratio": 0.3 + 0.04 * ((i * 5) % 16),
                      "xi": 0.01 * (i % 2), "gamma_min": 0.2, "seed": 0},
        )
        for i in range(16)
    ]  # fmt: skip
    shares = importances(rank_configs(trials, "discretised_accuracy"), "discretised_accuracy")
    assert set(shares) == {"zeta1", "token_ratio", "xi"}
    assert next(iter(shares)) == "zeta1" and shares["zeta1"] > 0.6
    assert sum(shares.values()) == pytest.approx(1.0)
    few = rank_configs(trials[:5], "discretised_accuracy")
    assert importances(few, "discretised_accuracy") == {}


def test_plain_darts_among_them(search_trial, make_chain) -> None:
    """Its weights are 0, which a logarithmic scale has no place for."""
    g = make_chain("msa_h2", "mlp_r3")
    trials = [
        search_trial(i, 0, g, 0.1 * i, 0.9, settings={"skip_weight": w, "xi": 0.0})
        for i, w in enumerate((0.0, 0.01, 0.1, 1.0, 10.0, 3.0))
    ]
    configs = rank_configs(trials, "discretised_accuracy")
    assert importances(configs, "discretised_accuracy") == {"skip_weight": pytest.approx(1.0)}


def test_equal_scores_have_no_importances(search_trial, make_chain) -> None:
    g = make_chain("msa_h2", "mlp_r3")
    trials = [search_trial(i, 0, g, 0.5, 0.9) for i in range(8)]
    assert importances(rank_configs(trials, "supernet_accuracy"), "supernet_accuracy") == {}
