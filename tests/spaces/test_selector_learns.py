"""The gradient of the token selector through a whole supernet in which no edge holds `identity`."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import reference, tape
from support.plugin_operation import TokenConv  # noqa: F401  registers conv_k<int>
from torch import Tensor

import dasvit.search.cuda_graph
from dasvit.search.cuda_graph import WARM_UP, CudaGraphs
from dasvit.spaces.base import Route
from dasvit.spaces.cell.edges import SearchCell
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.operations import apply_gated, build_operation
from dasvit.spaces.cell.supernet import SuperNet

OPS = ("zero", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")
WAYS = {
    "literal": {},
    "fused": {"fused": True},
    "recomputed": {"fused": True, "recompute": True},
    "literal, bf16": {"precision": "bf16"},
    "fused, bf16": {"fused": True, "precision": "bf16"},
    "recomputed, bf16": {"fused": True, "recompute": True, "precision": "bf16"},
}
PLACES = pytest.mark.parametrize("token_where", ["input", "edge"])


def make(token_where: str, token_ratio: float = 0.25, **way: object) -> SuperNet:
    """Freshly initialised, as a search begins."""
    return SuperNet(
        (OPS,) * 5,
        num_layers=2,
        dim=16,
        num_nodes=2,
        image_size=16,
        patch_size=4,
        in_channels=1,
        num_classes=3,
        route=Route(token_ratio=token_ratio, token_where=token_where),
        **way,
    )


def gradients(model: SuperNet, *batch: Tensor) -> dict[str, Tensor]:
    images, labels = batch
    loss = F.cross_entropy(model(images, torch.full((5, len(OPS)), 1 / len(OPS))), labels)
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, params), strict=True))


def assert_learns(found: dict[str, Tensor]) -> None:
    least = 1e-3 * found["embedding.patches.proj.weight"].norm()
    for matrix in ("query", "key"):
        grads = [g.flatten() for name, g in found.items() if f"{matrix}.weight" in name]
        assert torch.cat(grads).norm() >= least, matrix


@PLACES
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_w_q_and_w_k_get_a_gradient(way: dict, token_where: str, make_batch: Callable) -> None:
    """Behind a gate on the tokens themselves, whose scale a LayerNorm undoes, it was 2e-6 of the
    embedding's."""
    assert_learns(gradients(make(token_where, **way), *make_batch(16, side=16)))


@PLACES
def test_captured_as_well(
    token_where: str, make_batch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dasvit.search.cuda_graph, "capture", tape.record)
    model, graphs = make(token_where, fused=True), CudaGraphs(torch.device("cpu"))
    for _ in range(WARM_UP + 2):
        batch = make_batch(16, side=16)
        found = graphs.call(lambda *tensors: gradients(model, *tensors), *batch)
    assert graphs._captured is not None
    assert_learns(found)
    for name, grad in gradients(model, *batch).items():
        torch.testing.assert_close(found[name], grad, msg=name)


@PLACES
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_gate_is_exactly_one(way: dict, token_where: str, make_batch: Callable) -> None:
    """The same logits with the gate and without, where nothing takes a gradient."""
    model, (images, _) = make(token_where, **way), make_batch(16, side=16)
    weights = torch.rand(5, len(OPS))
    gated = model(images, weights)
    with torch.no_grad():
        assert torch.equal(model(images, weights), gated)


@pytest.mark.usefixtures("double")
def test_a_gate_of_any_value_scales_what_operations_read(
    tiny_ops: tuple[str, ...], randomise: Callable, assert_same_gradients: Callable
) -> None:
    """Behind the norm of MSA and MLP, on the tokens of all others; in a fused encoder as well."""
    cell = randomise(SearchCell((tiny_ops,) * 5, 8, num_nodes=2))
    tokens, last = torch.randn(2, 2, 5, 8, requires_grad=True)
    gate, weights = torch.rand(2, 5, 1, requires_grad=True), torch.rand(5, len(tiny_ops))
    expected = reference.search_cell(cell, tokens, last, weights, gate)
    direction = torch.randn_like(expected)
    for way in (cell, FusedCell(cell), FusedCell(cell, recompute=True)):
        actual = way(tokens, last, weights, gate)
        torch.testing.assert_close(actual, expected)
        leaves = [tokens, last, gate]
        assert_same_gradients((actual * direction).sum(), (expected * direction).sum(), leaves)
    registered = build_operation("conv_k3", 8)
    assert torch.equal(apply_gated(registered, tokens, gate), registered(tokens * gate))
    assert torch.equal(apply_gated(registered, tokens, None), registered(tokens))
