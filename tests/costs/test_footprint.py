"""Memory of a network: closed forms, and what a real pass keeps alive."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from dasvit.costs import Footprint, LiveMemory, footprint
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


def test_bytes_follow_the_precision() -> None:
    single, double = footprint(perceptron(), (5, 6)), footprint(perceptron().double(), (5, 6))
    assert (double.weights, double.training) == (2 * single.weights, 2 * single.training)


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


def test_depth_costs_training_and_not_inference() -> None:
    shallow, deep = (
        footprint(DerivedViT(img_size=32, patch_size=4, embed_dim=48, depth=d), (3, 32, 32))
        for d in (4, 8)
    )
    assert deep.training > 1.8 * shallow.training
    assert deep.inference == shallow.inference


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


def test_printed_with_units() -> None:
    text = str(Footprint(weights=3 * 2**20, training=2**19, inference=2**18))
    assert text == (
        "3.0 MiB of weights; activations of one image: 0.5 MiB kept in training, "
        "0.2 MiB at most at inference"
    )


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
