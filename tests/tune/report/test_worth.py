"""Intervals and correlations, by known answers, and what a sweep says with them."""

import math
from dataclasses import replace

import pytest
from support.sweep_trials import chain, retrain_trial, search_trial

from tune.report.outcome import Outcome
from tune.report.page import leaderboard_text
from tune.report.worth import (
    gain_over_random,
    mean_difference,
    rank_correlation,
    score_correlation,
    verdict,
)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the interval does not matter."""
    monkeypatch.setattr("tune.report.worth.RESAMPLES", 50)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("x", "y", "tau"),
    [
        ([1, 2, 3, 4], [1, 3, 2, 4], 4 / 6),  # of 6 pairs, (2, 3) alone is discordant
        # Equal as fractions, apart by the last bit in floating point: a tie.
        ([1, 1, 2], [(350 / 360 + 356 / 360) / 2, (353 / 360 + 353 / 360) / 2, 1], 1.0),
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(6)),  # one tie in x: 2 of 3, τ-b = 2 / sqrt(2 · 3)
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2], [1, 2], None),
    ],
)
def test_kendalls_tau(x: list[float], y: list[float], tau: float | None) -> None:
    found = rank_correlation(x, y)
    assert (found and found.value) == (tau if tau is None else pytest.approx(tau))


def test_the_interval_of_a_correlation() -> None:
    x = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    perfect = rank_correlation(x, x)
    assert (perfect.count, perfect.low, perfect.high) == (6, None, None)  # as every resample is
    noisy = rank_correlation(x, [0.3, 0.1, 0.2, 0.6, 0.4, 0.5])
    assert noisy.value == pytest.approx(7 / 15)
    # A loop of our own over 2,000 other resamples gave -0.091 and 1.
    assert noisy.low == pytest.approx(-0.091, abs=0.1) and noisy.high == pytest.approx(1.0)


def test_mean_difference_is_welchs() -> None:
    got = mean_difference([0.9, 0.92, 0.94], [0.7, 0.8, 0.75, 0.65])
    assert (got.value, got.count) == (pytest.approx(0.195), 4)
    # s1² / 3 = 0.000133, s2² / 4 = 0.001042; 3.71 degrees of freedom; t = 2.8639.
    assert got.low == pytest.approx(0.0968, abs=5e-4)
    assert got.high == pytest.approx(0.2932, abs=5e-4)
    assert mean_difference([], [0.7]) is None and mean_difference([0.9], []) is None
    for few in (mean_difference([0.9], [0.7, 0.8]), mean_difference([0.5, 0.5], [0.35, 0.35])):
        assert (few.value, few.low, few.high) == (pytest.approx(0.15), None, None)


@pytest.fixture(scope="module")
def measured(outcome: Outcome) -> Outcome:
    """Four found and two random encoders; the score orders the test but for one pair."""
    found = [chain("mlp_r3", name) for name in ("msa_h2", "msa_h3", "mlp_r3", "identity")]
    drawn = (chain("msa_h2", "msa_h2"), chain("msa_h3", "msa_h3"))
    tests = zip((*found, *drawn), (0.92, 0.90, 0.91, 0.80, 0.70, 0.74), strict=True)
    return replace(
        outcome,
        search=tuple(search_trial(i, 0, g, 0.9 - 0.1 * i, 0.9) for i, g in enumerate(found)),
        random=drawn,
        retrained=tuple(
            retrain_trial(g.canonical_hash, seed, top1 + 0.01 * seed)
            for g, top1 in tests
            for seed in ((0,) if g in drawn else (0, 1))
        ),
    )


@pytest.mark.usefixtures("few_resamples")
def test_what_the_search_adds_and_what_its_score_is_worth(measured: Outcome) -> None:
    gain = gain_over_random(measured)
    assert (gain.value, gain.count) == (pytest.approx(0.925 - 0.72), 2)
    assert gain_over_random(replace(measured, search=())) is None
    tau = score_correlation(measured)
    assert (tau.value, tau.count) == (pytest.approx((5 - 1) / 6), 4)  # one of six pairs crossed
    text = leaderboard_text(measured)
    assert f"({measured.ranking[0].hash}, 2 seeds) tests +20.5 points" in text
    assert "mean of 2 random encoders; 95 % interval" in text
    assert "is +0.67 (n = 4" in text
    few = replace(measured, search=measured.search[:2], random=measured.random[:1])
    text = leaderboard_text(few)
    assert "1 random encoder; an interval needs" in text
    assert "needs three retrained encoders" in text
    assert "--random-baseline" in leaderboard_text(replace(few, random=()))


def test_the_verdict(measured: Outcome, climbed: Outcome) -> None:
    best = measured.ranking[0].hash
    lines = verdict(measured)
    assert lines[0] == f"best encoder {best}, found once: 92.5 ± 0.7 %"
    assert lines[1] == "beside it: mean of 2 random encoders 72.0 %"
    assert lines[2].startswith("it tests +20.5 points from the random ones (95 % interval +")
    assert lines[2].endswith(", which is more than noise")
    noisy = [replace(t, test_top1=t.test_top1 - 0.3 * t.seed) for t in measured.retrained]
    assert verdict(replace(measured, retrained=tuple(noisy)))[2].endswith("no more than noise")
    one = replace(measured, random=measured.random[:1])
    assert "too few to say" in verdict(one)[2]
    assert verdict(replace(measured, retrained=())) == []
    blurred = tuple(replace(trial, decided=0.01) for trial in measured.search)
    said = verdict(replace(measured, search=(*blurred[1:], measured.search[0])))[-1]
    assert said.startswith(f"{len(blurred) - 1} of {len(blurred)} searches kept all weights within")
    skips = chain("identity", "identity", "identity", "msa_h2")
    fallen = replace(measured.search[-1], genotype=skips)
    said = verdict(replace(measured, search=(*measured.search[:-1], fallen)))
    number = len(measured.search)
    assert any(line.startswith(f"1 of {number} searches collapsed: all edges") for line in said)
    assert not replace(fallen, genotype=chain("identity", "identity")).collapsed
    # On the ladder a random encoder stands first, and one as good is cheaper.
    first, second, *_ = climbed.ranking
    lines = verdict(climbed)
    assert lines[0].startswith(f"best encoder {first.hash}, drawn at random, which no search beat")
    assert lines[2].startswith(f"the best found one, {second.hash}, tests -4.0 points")
    assert lines[3].startswith(f"as good within a standard error, and cheapest: {second.hash} with")
