import dataclasses

import pytest

from tune.trials import Failure
from tune.worth import (
    check_rows,
    gain_over_random,
    gain_sentence,
    score_correlation,
    score_sentence,
)


@pytest.fixture
def measured(outcome, make_chain, search_trial, retrain_trial):
    """Four found and two random encoders; the score orders the test but for one pair."""
    found = [make_chain("mlp_r3", name) for name in ("msa_h2", "msa_h3", "mlp_r3", "identity")]
    drawn = (make_chain("msa_h2", "msa_h2"), make_chain("msa_h3", "msa_h3"))
    tests = (0.92, 0.90, 0.91, 0.80)
    return dataclasses.replace(
        outcome,
        search=tuple(search_trial(i, 0, g, 0.9 - 0.1 * i, 0.9) for i, g in enumerate(found)),
        random=drawn,
        retrained=(
            *(
                retrain_trial(g.canonical_hash, seed, top1 + 0.01 * seed)
                for g, top1 in zip(found, tests, strict=True)
                for seed in (0, 1)
            ),
            *(
                retrain_trial(g.canonical_hash, 0, top1)
                for g, top1 in zip(drawn, (0.70, 0.74), strict=True)
            ),
        ),
    )


def test_gain_over_random(measured) -> None:
    gain = gain_over_random(measured)
    assert gain is not None and gain.low is not None and gain.high is not None
    assert gain.value == pytest.approx(0.925 - 0.72)
    assert gain.low < gain.value < gain.high
    assert gain.count == 2
    text = gain_sentence(measured)
    assert "(" + measured.ranking[0].hash + ", 2 seeds) tests +20.5 points" in text
    assert "mean of 2 random encoders; 95 % interval" in text


def test_gain_without_either_side(measured) -> None:
    without = dataclasses.replace(measured, random=())
    assert gain_over_random(without) is None
    assert "--random-baseline" in gain_sentence(without)
    one = dataclasses.replace(measured, random=measured.random[:1])
    assert "1 random encoder; an interval needs" in gain_sentence(one)
    assert gain_over_random(dataclasses.replace(measured, search=())) is None


def test_score_correlation(measured) -> None:
    tau = score_correlation(measured)
    assert tau is not None
    assert (tau.value, tau.count) == (pytest.approx((5 - 1) / 6), 4)  # one of six pairs crossed
    assert "is +0.67 (n = 4" in score_sentence(measured)
    few = dataclasses.replace(measured, search=measured.search[:2])
    assert score_correlation(few) is None
    assert "needs three retrained encoders" in score_sentence(few)


def test_scores_before_and_after_the_check(measured, search_trial) -> None:
    assert check_rows(measured) == []
    genotype = measured.ranking[0].genotype
    fresh = (search_trial(0, 1, genotype, 0.7, 0.9), search_trial(0, 2, genotype, 0.8, 0.9))
    checked = dataclasses.replace(measured, checked=fresh)
    [_, row] = check_rows(checked)
    assert row == ["0", "90.0 (1 seed)", "75.0 ± 7.1 (2 seeds)", "-15.0"]
    assert [s.hash for s in checked.ranking] == [s.hash for s in measured.ranking]
    assert checked.ranking[0].discretised_accuracy.mean == 0.9


def test_an_unfinished_check_is_no_complete_sweep(measured) -> None:
    missing = dataclasses.replace(measured, not_checked=(Failure("config_000_seed_2", "boom"),))
    assert measured.complete and not missing.complete
    assert [failure.name for failure in missing.failures] == ["config_000_seed_2"]
