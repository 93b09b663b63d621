"""What a sweep's numbers are worth: rank correlation and differences, with intervals. Pure.

Not named after statistics: a script in this folder would import it in place of Python's own.
"""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Estimate", "bootstrap", "kendall_tau", "mean_difference", "rank_correlation"]

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


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's τ-b, from -1 to 1; None where one side is constant or there are under two pairs.

    Raises:
        ValueError: `x` and `y` differ in length.
    """
    if len(x) != len(y):
        raise ValueError(f"kendall_tau needs pairs, but got {len(x)} and {len(y)} values")
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(stats.kendalltau(x, y).statistic)


def bootstrap(
    statistic: Callable[[Sequence[int]], float | None],
    size: int,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of a statistic over data drawn anew with replacement.

    Args:
        statistic: from the indices of a resample; None where it is not defined there. Such
            resamples are left out.
        size: of the data.
        level: share of the resamples inside.
        seed: equal seeds give equal intervals.

    Returns:
        Both ends, or None where under half of the resamples define the statistic, or where all
        give the same: few data in perfect order, which does not make it certain.
    """
    rng = random.Random(seed)
    values = []
    for _ in range(resamples):
        value = statistic([rng.randrange(size) for _ in range(size)])
        if value is not None:
            values.append(value)
    values.sort()
    if len(values) < resamples / 2 or math.isclose(values[0], values[-1], abs_tol=1e-9):
        return None
    outside = (1.0 - level) / 2
    low = values[math.floor(outside * (len(values) - 1))]
    high = values[math.ceil((1.0 - outside) * (len(values) - 1))]
    return low, high


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Kendall's τ-b of pairs with a bootstrap interval over the pairs; `count` is their number.

    None under three pairs, or where one side is constant.
    """
    tau = kendall_tau(x, y)
    if tau is None or len(x) < LEAST_PAIRS:
        return None
    ends = bootstrap(lambda i: kendall_tau([x[k] for k in i], [y[k] for k in i]), len(x))
    low, high = ends or (None, None)
    return Estimate(tau, low, high, len(x))


def mean_difference(
    x: Sequence[float], y: Sequence[float], *, level: float = 0.95
) -> Estimate | None:
    """Mean of `x` minus mean of `y` with Welch's t-interval; `count` is the number of values in
    `y`.

    The interval needs two values on each side, and a spread on one of them: two equal ones show
    coarse values, not certainty. Without it there is only the difference. None where a side is
    empty.
    """
    if not x or not y:
        return None
    difference = statistics.fmean(x) - statistics.fmean(y)
    if len(x) < 2 or len(y) < 2:
        return Estimate(difference, None, None, len(y))
    a, b = statistics.variance(x) / len(x), statistics.variance(y) / len(y)
    if a + b == 0:
        return Estimate(difference, None, None, len(y))
    freedom = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
    half = float(stats.t.ppf((1.0 + level) / 2, freedom)) * math.sqrt(a + b)
    return Estimate(difference, difference - half, difference + half, len(y))
