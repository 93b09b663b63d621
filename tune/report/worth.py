"""What a sweep's search is worth: its best beside random encoders, its score beside the test. Pure.

The test accuracies are read here to judge the search. Nothing is chosen by them.
"""

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tune.report.outcome import Outcome

__all__ = [
    "Estimate",
    "gain_over_random",
    "mean_difference",
    "rank_correlation",
    "score_correlation",
]

RESAMPLES = 2000
LEAST_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with a 95 % interval; without one (both None) where the data do not allow it.

    Attributes:
        value: of all data.
        low, high: ends of the interval.
        count: what it rests on, as the function that made it says.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Kendall's τ-b of pairs with a percentile bootstrap interval over the pairs (SciPy's).

    Resamples in which one side is constant have no τ and are left out. There is no interval where
    under half of them have one, or where all have the same: few data in perfect order, which does
    not make it certain.

    Returns:
        `count` is the number of pairs. None under three pairs, or where one side is constant.
    """
    if len(x) < LEAST_PAIRS or len(set(x)) < 2 or len(set(y)) < 2:
        return None

    def tau(a: Sequence[float], b: Sequence[float]) -> float:
        return float(stats.kendalltau(a, b).statistic)

    with warnings.catch_warnings(action="ignore"):  # those resamples
        settings = {"paired": True, "vectorized": False, "method": "percentile"}
        drawn = stats.bootstrap((x, y), tau, n_resamples=RESAMPLES, rng=0, **settings)
    values = drawn.bootstrap_distribution[~np.isnan(drawn.bootstrap_distribution)]
    low = high = None
    if len(values) >= RESAMPLES / 2 and np.ptp(values) > 1e-9:
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Estimate(tau(x, y), low, high, len(x))


def mean_difference(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Mean of `x` minus mean of `y` with Welch's 95 % t-interval (SciPy's).

    The interval needs two values on each side, and a spread on one of them: two equal ones show
    coarse values, not certainty. Without it there is only the difference.

    Returns:
        `count` is the number of values in `y`. None where a side is empty.
    """
    if not x or not y:
        return None
    difference = statistics.fmean(x) - statistics.fmean(y)
    if len(x) < 2 or len(y) < 2 or max(len(set(x)), len(set(y))) == 1:
        return Estimate(difference, None, None, len(y))
    interval = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    return Estimate(difference, float(interval.low), float(interval.high), len(y))


def gain_over_random(outcome: Outcome) -> Estimate | None:
    """Test accuracy of the encoder that ranks first minus the random mean (ratios).

    One side are the retrainings of that encoder, one value per seed; the other the random
    encoders, one value each: its mean over its seeds. `count` is the number of random encoders.
    None without either side.
    """
    if not outcome.ranking:
        return None
    best = [t.test_top1 for t in outcome.retrained if t.model == outcome.ranking[0].hash]
    names = [genotype.canonical_hash for genotype in outcome.random]
    drawn = [
        outcome.models[name].score("test_top1").mean for name in names if name in outcome.models
    ]
    return mean_difference(best, drawn)


def score_correlation(outcome: Outcome) -> Estimate | None:
    """Kendall's τ of search score and test accuracy over the encoders that have both; None with
    fewer than three."""
    measured = [summary for summary in outcome.ranking if summary.hash in outcome.models]
    scores = [summary.score(outcome.metric).mean for summary in measured]
    tests = [outcome.models[summary.hash].score("test_top1").mean for summary in measured]
    return rank_correlation(scores, tests)
