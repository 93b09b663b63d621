"""The gradient of the token selector through a whole supernet in which no edge holds `identity`."""

import pytest
import torch
import torch.nn.functional as F
from support.plugin_operation import TokenConv  # noqa: F401  registers conv_k<int>
from support.search_runs import make_batch

from dasvit.spaces.base import Route
from dasvit.spaces.cell.operations import apply_gated, build_operation
from dasvit.spaces.cell.supernet import SuperNet

OPS = ("zero", "msa_h2", "msa_h4", "mlp_r0.5", "mlp_r2")


@pytest.mark.parametrize("token_where", ["input", "edge"])
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"fused": True},
        {"fused": True, "recompute": True},
        {"precision": "bf16"},
        {"fused": True, "recompute": True, "precision": "bf16"},
    ],
    ids=str,
)
def test_w_q_and_w_k_get_a_gradient_of_a_gate_that_is_one(way: dict, token_where: str) -> None:
    """Behind a gate on the tokens themselves, whose scale a LayerNorm undoes, the gradient was 2e-6
    of the embedding's. The logits are those without a gate, where nothing takes a gradient."""
    model = SuperNet(
        (OPS,) * 5,
        num_layers=2,
        dim=16,
        num_nodes=2,
        image_size=16,
        patch_size=4,
        in_channels=1,
        num_classes=3,
        route=Route(token_ratio=0.25, token_where=token_where),
        **way,
    )
    images, labels = make_batch(16, side=16)
    weights = torch.full((5, len(OPS)), 1 / len(OPS))
    logits = model(images, weights)
    names, params = zip(*model.named_parameters(), strict=True)
    found = dict(
        zip(names, torch.autograd.grad(F.cross_entropy(logits, labels), params), strict=True)
    )
    least = 1e-3 * found["embedding.patches.proj.weight"].norm()
    for matrix in ("query", "key"):
        grads = [g.flatten() for name, g in found.items() if f"{matrix}.weight" in name]
        assert torch.cat(grads).norm() >= least, matrix
    with torch.no_grad():
        assert torch.equal(model(images, weights), logits)


def test_an_operation_of_ones_own_is_gated_on_its_tokens() -> None:
    own, tokens, gate = build_operation("conv_k3", 8), torch.randn(2, 5, 8), torch.rand(2, 5, 1)
    assert torch.equal(apply_gated(own, tokens, gate), own(tokens * gate))
    assert torch.equal(apply_gated(own, tokens, None), own(tokens))
