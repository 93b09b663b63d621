"""Memory and latency of a network: closed forms, and what a real pass takes."""

import time
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import dasvit.costs
from dasvit.costs import Footprint, Latency, LiveMemory, footprint, latency
from dasvit.spaces.cell.derived_network import DerivedViT


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 4))


def test_a_perceptron_in_closed_form() -> None:
    found = footprint(perceptron(), (5, 6))
    # Weights and biases; per token its input, the hidden values before and after GELU, its output.
    assert found == Footprint(
        weights=4 * (6 * 10 + 10 + 10 * 4 + 4),
        training=4 * 5 * (6 + 10 + 10 + 4),
        inference=4 * 5 * (6 + 10 + 10),  # the first hidden values are gone when the output comes
    )


def saved(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, weights left out."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(images)
    total = sum(kept.values())
    assert out.requires_grad
    return total


@pytest.mark.parametrize(
    "make",
    [
        lambda: DerivedViT(img_size=32, patch_size=4, embed_dim=48, depth=2, num_classes=10),
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=10
        ),
        lambda: timm.create_model("test_resnet", num_classes=10),
    ],
    ids=["dasvit", "vit", "resnet"],
)
def test_training_is_what_autograd_saves(make: Callable[[], nn.Module]) -> None:
    model = make().train()
    per_image = saved(model, torch.randn(3, 3, 32, 32)) - saved(model, torch.randn(2, 3, 32, 32))
    # The logits are alive as well; and an allocation may be kept as a whole for one part of it.
    assert footprint(model, (3, 32, 32)).training == pytest.approx(per_image, rel=0.02)


def test_inference_is_the_peak_of_a_real_pass() -> None:
    model = DerivedViT(img_size=32, patch_size=4, embed_dim=48, depth=2, num_classes=10).eval()
    with LiveMemory() as memory, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    found = footprint(model, (3, 32, 32))
    assert found.inference == memory.peak
    assert found.inference < found.training


def test_meta_and_memory_count_the_same_and_nothing_is_touched() -> None:
    model = timm.create_model("test_resnet", num_classes=10).eval()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = footprint(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    for name, value in model.state_dict().items():  # the batch norms' running values too
        assert torch.equal(value, values[name])
    with torch.device("meta"):
        meta = timm.create_model("test_resnet", num_classes=10)
    assert footprint(meta, (3, 32, 32)) == found


def test_live_memory_by_hand() -> None:
    with LiveMemory() as memory:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1
        assert memory.live == 800
        view = b[10:]
        assert memory.live == 800
        del a
        assert memory.live == 400
        del b
        assert memory.live == 400  # the view holds it
        del view
    assert (memory.live, memory.peak) == (0, 800)
    with LiveMemory(512) as memory:
        held = torch.zeros(129)  # 516 bytes
        assert memory.live == 1024
    assert held.numel() == 129


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


@pytest.mark.parametrize("seconds", [0, float("nan")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        latency(nn.Identity(), torch.zeros(1), seconds=seconds)
