"""The fused encoder: packing, memory, precision. (Values and gradients against the literal one:
tests/conformance/test_spaces.py.)"""

from collections.abc import Callable

import pytest
import torch
from support.plugin_operation import TokenConv  # noqa: F401  registers conv_k<int>
from torch import Tensor
from torch.testing import assert_close

from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.model import SearchModel
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.edges import SearchCell
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.supernet import SuperNet

TINY = ("zero", "identity", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")
SPACES = {
    "all": (TINY,) * 5,
    "nothing to fuse": (("zero", "identity"),) * 5,
    "zero alone": (("zero",),) * 5,
    "registered": (("identity", "conv_k3", "mlp_r2"),) * 5,
}


@pytest.mark.parametrize("token_ratio", [1.0, 0.5])
@pytest.mark.parametrize("edge_ops", SPACES.values(), ids=SPACES)
def test_values_go_in_and_out(token_ratio: float, edge_ops: EdgeOps, randomise: Callable) -> None:
    first, second = (
        randomise(SearchCell(edge_ops, 8, num_nodes=2, edge_token_ratio=token_ratio))
        for _ in range(2)
    )
    fused = FusedCell(first)
    assert sum(p.numel() for p in fused.parameters()) == sum(p.numel() for p in first.parameters())
    for cell in (first, second):
        fused.load(cell)
        found = fused.unfused().state_dict()
        assert found.keys() == cell.state_dict().keys()
        for key, value in cell.state_dict().items():
            assert torch.equal(found[key], value), key
            assert found[key].data_ptr() != value.data_ptr() or value.numel() == 0
        inputs = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.rand(5, len(edge_ops[0]))
        assert_close(fused(*inputs), cell(*inputs))


def test_dropout_is_refused_and_taken_literally(make_supernet: Callable[..., SuperNet]) -> None:
    with pytest.raises(ValueError, match=r"no dropout, but got dropout=0\.1"):
        FusedCell(SearchCell((TINY,) * 5, 8, num_nodes=2, dropout=0.1))
    assert isinstance(make_supernet(fused=True, dropout=0.1).cells[0], SearchCell)
    assert isinstance(make_supernet(fused=True).cells[0], FusedCell)


def _saved_bytes(model: SearchModel, images: Tensor, weights: Tensor) -> int:
    """Bytes that the graph of a loss keeps, parameters aside, each memory counted once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(images, weights).sum()
    assert loss.requires_grad
    return sum(kept.values())


def test_it_keeps_less_for_the_backward_pass(
    make_model: Callable[..., SearchModel], make_batch: Callable
) -> None:
    images, _ = make_batch(16)
    literal, fused, recomputed = (
        _saved_bytes(model, images, model.weights().detach())
        for model in (make_model(), make_model(fused=True), make_model(fused=True, recompute=True))
    )
    assert fused < 0.85 * literal
    assert recomputed < 0.35 * fused


def test_a_frozen_alpha_pass_keeps_nothing_for_the_weights(
    make_model: Callable[..., SearchModel], make_batch: Callable
) -> None:
    model, (images, labels) = make_model(fused=True, num_layers=1), make_batch(16)
    free = _saved_bytes(model, images, model.weights())
    model.supernet.requires_grad_(False)
    assert _saved_bytes(model, images, model.weights()) < 0.7 * free
    model.supernet.requires_grad_(True)
    arch_gradient(model, (images, labels), (images, labels), noise={}, xi=0.0)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_bf16_is_close_and_keeps_fp32_parameters(
    fused: bool, make_model: Callable[..., SearchModel], make_batch: Callable
) -> None:
    """bfloat16 has 8 significant bits: a few per cent at most on logits and gradients."""
    exact, model = make_model(fused=fused), make_model(fused=fused, precision="bf16")
    model.load_state_dict(exact.state_dict())
    train, val = make_batch(8), make_batch(8)
    logits = [m(train[0]) for m in (exact, model)]
    assert logits[1].dtype == torch.float32
    assert not torch.equal(logits[0], logits[1])
    assert_close(logits[1], logits[0], rtol=0.05, atol=0.05)
    for xi in (0.0, 0.01):
        a, b = (arch_gradient(m, train, val, noise={}, xi=xi).gradients[0] for m in (exact, model))
        assert b.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
        assert cosine > 0.98
    grads, _, _ = weight_gradient(model, train, {})
    assert {g.dtype for g in grads} == {torch.float32}


def test_finite_differences_are_taken_in_fp32(
    make_model: Callable[..., SearchModel], make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference at w ± εv would drown in bfloat16's rounding."""
    model = make_model(fused=True, precision="bf16")
    forward, seen = SuperNet.forward, []

    def spy(self: SuperNet, *args: Tensor) -> Tensor:
        seen.append(self.precision)
        return forward(self, *args)

    monkeypatch.setattr(SuperNet, "forward", spy)
    batch = make_batch()
    arch_gradient(model, batch, batch, noise={}, xi=0.1)
    assert seen == ["bf16", "bf16", "fp32", "fp32"]
    assert model.supernet.precision == "bf16"
