"""Mean and deviation of a few repeated measurements."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1; None for a single value) of `count` values."""

    mean: float
    std: float | None
    count: int

    @property
    def percent(self) -> str:
        """Of ratios, `94.1 ± 0.3` in percent; a single value has no deviation."""
        mean = f"{100 * self.mean:.1f}"
        return mean if self.std is None else f"{mean} ± {100 * self.std:.1f}"


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    numbers = list(values)
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, len(numbers))
