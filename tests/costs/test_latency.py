"""Latency: which runs count, what is reported of them, and that the model stays as it was."""

import time

import pytest
import torch
from torch import Tensor, nn

import dasvit.costs
from dasvit.costs import Latency, latency


class Clock:
    """A clock that only a model's runs move."""

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.seconds, self.runs = 0.0, seconds, 0

    def perf_counter(self) -> float:
        return self.now

    def run(self) -> None:
        self.now += self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1


class Timed(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.clock.run()
        self.modes.add((self.training, torch.is_grad_enabled()))
        return images


def measured(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], budget: float
) -> tuple[Latency, Timed]:
    clock = Clock(seconds)
    monkeypatch.setattr(dasvit.costs, "time", clock)
    model = Timed(clock).train()
    return latency(model, torch.zeros(4, 3, 8, 8), seconds=budget), model


def test_warm_runs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(monkeypatch, [9.0, 9.0, 0.1, 0.2, 0.3, 0.4, 0.5], 1.0)
    assert found.runs == 5
    assert (found.median, found.p10, found.p90) == pytest.approx((0.3, 0.14, 0.46))  # interpolated
    assert found.throughput == pytest.approx(4 / 0.3)


def test_the_time_given_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    found, model = measured(monkeypatch, [0.125], 10.0)
    assert found.runs == 64  # 8 of 10 seconds
    assert model.clock.runs == 64 + 16
    found, model = measured(monkeypatch, [60.0], 1.0)
    assert (found.runs, model.clock.runs) == (5, 5 + 2)
    found, _ = measured(monkeypatch, [1e-9], 10.0)
    assert found.runs == 1000


def test_evaluation_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = measured(monkeypatch, [0.1], 1.0)
    assert model.modes == {(False, False)}


def test_a_sleep_is_timed() -> None:
    class Sleep(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            time.sleep(0.01)
            return images

    found = latency(Sleep(), torch.zeros(2, 1), seconds=0.1)
    assert 0.01 <= found.p10 <= found.median <= found.p90 < 1
    assert (found.device, found.batch_size, found.precision) == ("cpu", 2, "float32")
    assert found.threads == torch.get_num_threads()


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        latency(nn.Identity(), torch.zeros(1), seconds=seconds)


def test_printed_with_batch_threads_and_units() -> None:
    found = Latency(device="cpu", threads=2, precision="float32", batch_size=8, runs=20,
                    median=0.04, p10=0.038, p90=0.0525)  # fmt: skip
    assert str(found) == (
        "batch 8 on cpu, 2 threads, float32: median 40 ms (p10 38, p90 52.5, 20 runs); 200 images/s"
    )
