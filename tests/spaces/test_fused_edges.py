"""The fused encoder: packing, memory, precision. (Values and gradients against the literal one:
tests/conformance/test_spaces.py.)"""

from collections.abc import Callable

import pytest
import torch
from support.plugin_operation import TokenConv  # noqa: F401  registers conv_k<int>
from support.search_runs import SIX, make_batch, make_model, model_config
from torch import Tensor
from torch.testing import assert_close

from dasvit.search.architect import arch_gradient, weight_gradient
from dasvit.search.model import SearchModel
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.edges import SearchCell
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.supernet import SuperNet


@pytest.mark.parametrize(
    ("edge_ops", "token_ratio"),
    [
        ((SIX,) * 5, 0.5),
        ((("zero", "identity"),) * 5, 0.5),  # nothing to fuse
        ((("zero",),) * 5, 1.0),
        ((("identity", "conv_k3", "mlp_r2"),) * 5, 1.0),
    ],
    ids=str,
)
def test_values_go_in_and_out(edge_ops: EdgeOps, token_ratio: float, randomise: Callable) -> None:
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
        FusedCell(SearchCell((SIX,) * 5, 8, num_nodes=2, dropout=0.1))
    assert isinstance(make_supernet(fused=True, dropout=0.1).cells[0], SearchCell)
    assert isinstance(make_supernet(fused=True).cells[0], FusedCell)


def _kept_bytes(model: SearchModel, function: Callable[[], object]) -> int:
    """Bytes that graphs keep during a call, parameters aside, each memory counted once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function()
    return sum(kept.values())


def test_what_is_kept_for_the_backward_pass() -> None:
    """Less than by the literal encoder, less with recomputation; and nothing for the weights in an
    alpha pass, which has no gradient of theirs."""
    images, labels = make_batch(16)
    ways = {}
    for name in ("", "fused", "recompute"):
        on = {"fused": name != "", "recompute": name == "recompute"}
        model = make_model(model_config(**on))
        ways[name] = _kept_bytes(model, lambda model=model: model(images, model.weights().detach()))
    assert ways["fused"] < 0.85 * ways[""]
    assert ways["recompute"] < 0.35 * ways["fused"]

    model = make_model(model_config(fused=True, stage_layers=(1,)))
    free = _kept_bytes(model, lambda: model(images, model.weights()))
    batch = images, labels
    assert _kept_bytes(model, lambda: arch_gradient(model, batch, batch, noise={}, xi=0.0)) < (
        0.7 * free
    )


@pytest.mark.parametrize("fused", [False, True])
def test_bf16_is_close_and_keeps_fp32_parameters(fused: bool) -> None:
    """bfloat16 has 8 significant bits: a few per cent at most on logits and gradients."""
    exact, model = (
        make_model(model_config(fused=fused, precision=precision)) for precision in ("fp32", "bf16")
    )
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


def test_finite_differences_are_taken_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference at w ± εv would drown in bfloat16's rounding."""
    model, batch = make_model(model_config(fused=True, precision="bf16")), make_batch()
    forward, seen = SuperNet.forward, []

    def spy(self: SuperNet, *args: Tensor) -> Tensor:
        seen.append(self.precision)
        return forward(self, *args)

    monkeypatch.setattr(SuperNet, "forward", spy)
    arch_gradient(model, batch, batch, noise={}, xi=0.1)
    assert seen == ["bf16", "bf16", "fp32", "fp32"]
    assert model.supernet.precision == "bf16"
