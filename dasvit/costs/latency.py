"""How long one batch takes on the device at hand: the median of many runs, warm."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dasvit.costs.complexity import evaluation_mode

__all__ = ["Latency", "latency", "percentile"]

WARM_RUNS, MIN_RUNS, MAX_RUNS = 2, 5, 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Times of one forward pass without gradients, in seconds.

    Attributes:
        device: "cpu", or the GPU's name.
        threads: of the CPU.
        precision: of weights and images.
        batch_size: images a run.
        runs: how many were timed.
        median: of all runs. p10: the time that a tenth of them stayed below. p90: likewise.
    """

    device: str
    threads: int
    precision: str
    batch_size: int
    runs: int
    median: float
    p10: float
    p90: float

    @property
    def throughput(self) -> float:
        """Images a second at the median."""
        return self.batch_size / self.median

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"batch {self.batch_size} on {self.device}{threads if self.device == 'cpu' else ''}, "
            f"{self.precision}: median {1e3 * self.median:.3g} ms "
            f"(p10 {1e3 * self.p10:.3g}, p90 {1e3 * self.p90:.3g}, {self.runs} runs); "
            f"{self.throughput:.3g} images/s"
        )


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def latency(model: nn.Module, images: Tensor, *, seconds: float = 3.0) -> Latency:
    """Time `model` on `images`, both on one device, in evaluation mode.

    A fifth of the time, and two runs at least, goes before the timed runs, of which there are 5 to
    1,000: where a run is slow, more time than `seconds` goes by.

    Args:
        model: left in the mode it was in.
        images: (batch, channels, height, width).
        seconds: wall time to spend.

    Raises:
        ValueError: no time to spend.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"the time to measure in must be positive, but got {seconds} seconds")
    wait: Callable[[], None] = (
        (lambda: torch.cuda.synchronize(images.device)) if images.is_cuda else (lambda: None)
    )

    def once() -> float:
        wait()
        started = time.perf_counter()
        model(images)
        wait()
        return time.perf_counter() - started

    def spend(budget: float, least: int) -> list[float]:
        times: list[float] = []
        while len(times) < least or (sum(times) < budget and len(times) < MAX_RUNS):
            times.append(once())
        return times

    with evaluation_mode(model), torch.inference_mode():
        spend(0.2 * seconds, WARM_RUNS)
        times = spend(0.8 * seconds, MIN_RUNS)
    return Latency(
        device=torch.cuda.get_device_name(images.device) if images.is_cuda else images.device.type,
        threads=torch.get_num_threads(),
        precision=str(images.dtype).removeprefix("torch."),
        batch_size=len(images),
        runs=len(times),
        median=statistics.median(times),
        p10=percentile(times, 0.1),
        p90=percentile(times, 0.9),
    )
