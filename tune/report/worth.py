"""What a sweep's search is worth: its best beside random encoders, its score beside the test. Pure.

The test accuracies are read here to judge the search. Nothing is chosen by them.
"""

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dasvit.costs import format_count
from dasvit.report.events import NEAR_UNIFORM
from dasvit.report.progress import counted
from tune.report.aggregate import GenotypeSummary, ModelSummary
from tune.report.outcome import VIT, Outcome

__all__ = [
    "Estimate",
    "gain_over_random",
    "mean_difference",
    "random_accuracies",
    "rank_correlation",
    "score_correlation",
    "verdict",
]

WORDS = {"macs": "multiply-adds", "params": "parameters"}
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
    # Equal means of counts may differ in their last bit, which is no order.
    x, y = ([round(value, 9) for value in values] for values in (x, y))
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
    """Test accuracy of the best found encoder minus the random mean (ratios).

    One side are the retrainings of that encoder, one value per seed; the other the random
    encoders, one value each: its mean over its seeds. `count` is the number of random encoders.
    None without either side.
    """
    if outcome.best_found is None:
        return None
    best = [t.test_top1 for t in outcome.retrained if t.model == outcome.best_found.hash]
    return mean_difference(best, random_accuracies(outcome))


def random_accuracies(outcome: Outcome) -> list[float]:
    """Test accuracy of each random encoder that was retrained: the mean over its seeds (ratio)."""
    names = [genotype.canonical_hash for genotype in outcome.random]
    known = (outcome.models[name] for name in names if name in outcome.models)
    return [model.score("test_top1").mean for model in known]


def score_correlation(outcome: Outcome) -> Estimate | None:
    """Kendall's τ of search score and test accuracy over the encoders that have both; None with
    fewer than three."""
    measured = [encoder for encoder in outcome.ranking if encoder.hash in outcome.models]
    scores = [encoder.score(outcome.metric).mean for encoder in measured]
    tests = [outcome.models[encoder.hash].score("test_top1").mean for encoder in measured]
    return rank_correlation(scores, tests)


def verdict(outcome: Outcome) -> list[str]:
    """What was found, in sentences. Empty before the encoder to keep has been retrained."""
    winner, models = outcome.winner, outcome.models
    if winner is None or winner.hash not in models:
        return []
    tested = models[winner.hash].trials[0].num_tested
    images = f" on {tested:,} test images" if tested else ""
    times = "once" if len(winner.trials) == 1 else f"{len(winner.trials)} times"
    origin = f"found {times}" if winner.trials else "drawn by the weights of a search"
    if not winner.of_search:
        origin = "drawn at random, which no search beat"
    lines = [f"best encoder {winner.hash}, {origin}: {_accuracy(models[winner.hash])}{images}"]
    beside = []
    if VIT in models:
        beside.append(f"plain ViT {_accuracy(models[VIT])}")
    if drawn := random_accuracies(outcome):
        mean = f"{100 * statistics.fmean(drawn):.1f} %"
        beside.append(f"mean of {counted(len(drawn), 'random encoder')} {mean}")
    if outcome.largest_class is not None:
        beside.append(f"largest class {100 * outcome.largest_class:.1f} %")
    if beside:
        lines.append("beside it: " + ", ".join(beside))
    if (gain := gain_over_random(outcome)) and outcome.best_found:
        first = outcome.best_found is winner
        name = "it" if first else f"the best found one, {outcome.best_found.hash},"
        words = f"{name} tests {100 * gain.value:+.1f} points from the random ones"
        if gain.low is None or gain.high is None:
            lines.append(f"{words}; too few to say whether that is more than noise")
        else:
            noise = "no more" if gain.low <= 0 <= gain.high else "more"
            interval = f"95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
            lines.append(f"{words} ({interval}), which is {noise} than noise")
    undecided = sum(trial.chose_at_random for trial in outcome.search)
    if undecided:
        lines.append(
            f"{undecided} of {len(outcome.search)} searches kept all weights within {NEAR_UNIFORM} "
            "of uniform and chose nearly at random: try a larger --alpha-lr or more epochs"
        )
    collapsed = sum(trial.collapsed for trial in outcome.search)
    if collapsed:
        lines.append(
            f"{collapsed} of {len(outcome.search)} searches collapsed: all edges but one at most "
            "hold a skip"
        )
    smallest = outcome.as_good[0]
    if smallest.hash != outcome.ranking[0].hash:
        first = outcome.ranking[0]
        lines.append(
            f"as good within a standard error, and cheapest: {smallest.hash} with "
            f"{_price(outcome, smallest)}, {first.hash} has {_price(outcome, first)} "
            "(--prefer small keeps it)"
        )
    return lines


def _price(outcome: Outcome, encoder: GenotypeSummary) -> str:
    price = outcome.price(encoder)
    if outcome.plan.cheap_by == "latency":
        return f"{1e3 * price:.2f} ms per image"
    return f"{format_count(int(price))} {WORDS[outcome.plan.cheap_by]}"


def _accuracy(model: ModelSummary) -> str:
    return f"{model.score('test_top1').percent} %"
