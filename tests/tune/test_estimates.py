import math
import statistics

import pytest

from tune.estimates import bootstrap, kendall_tau, mean_difference, rank_correlation


def test_kendall_tau_known_answers() -> None:
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Of 6 pairs, (2, 3) alone is discordant: (5 - 1) / 6.
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    # One tie in x: 2 concordant of 3, τ-b = 2 / sqrt(2 * 3).
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))


def test_kendall_tau_may_not_be_defined() -> None:
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None
    assert kendall_tau([1], [1]) is None
    with pytest.raises(ValueError, match="got 2 and 1 values"):
        kendall_tau([1, 2], [1])


def test_bootstrap_of_a_mean_is_about_normal() -> None:
    data = [math.sin(7 * i) for i in range(60)]
    ends = bootstrap(lambda index: statistics.fmean(data[i] for i in index), len(data))
    assert ends is not None
    half = 1.96 * statistics.stdev(data) / math.sqrt(len(data))
    assert ends[0] == pytest.approx(statistics.fmean(data) - half, abs=0.15 * half)
    assert ends[1] == pytest.approx(statistics.fmean(data) + half, abs=0.15 * half)


def test_bootstrap_is_repeatable_and_knows_its_limits() -> None:
    def first(index):
        return float(index[0])

    assert bootstrap(first, 10) == bootstrap(first, 10)
    assert bootstrap(first, 10) == (0.0, 9.0)
    assert bootstrap(lambda index: None, 10) is None


def test_rank_correlation() -> None:
    x = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    perfect = rank_correlation(x, x)
    assert perfect is not None
    assert perfect.count == 6
    assert perfect.value == pytest.approx(1.0)
    assert (perfect.low, perfect.high) == (None, None)  # every resample is in order too
    noisy = rank_correlation(x, [0.3, 0.1, 0.2, 0.6, 0.4, 0.5])
    assert noisy is not None
    assert noisy.low is not None and noisy.high is not None
    assert noisy.value == pytest.approx(7 / 15)
    assert noisy.low < noisy.value < noisy.high
    assert rank_correlation(x[:2], x[:2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_mean_difference_is_welchs() -> None:
    got = mean_difference([0.9, 0.92, 0.94], [0.7, 0.8, 0.75, 0.65])
    assert got is not None
    assert got.value == pytest.approx(0.195)
    # s1² / 3 = 0.000133, s2² / 4 = 0.001042; 3.71 degrees of freedom; t = 2.8639.
    assert got.low == pytest.approx(0.0968, abs=5e-4)
    assert got.high == pytest.approx(0.2932, abs=5e-4)
    assert got.count == 4


def test_mean_difference_of_few() -> None:
    one = mean_difference([0.9], [0.7, 0.8])
    assert one is not None
    assert (one.value, one.low, one.high) == (pytest.approx(0.15), None, None)
    assert mean_difference([], [0.7]) is None and mean_difference([0.9], []) is None
    equal = mean_difference([0.5, 0.5], [0.25, 0.25])
    assert equal is not None
    assert (equal.value, equal.low, equal.high) == (0.25, None, None)
