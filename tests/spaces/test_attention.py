import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dasvit.spaces.cell.attention import FEW_TOKENS, attention


@pytest.mark.parametrize("tokens", [1, min(FEW_TOKENS), max(FEW_TOKENS), max(FEW_TOKENS) + 1])
def test_both_ways_are_the_formula(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens by products, more by PyTorch's kernel."""
    calls: list[Tensor] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: calls.append(q) or kernel(q, k, v)
    )
    inputs = [torch.randn(3, 2, tokens, 5, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    q, k, v = inputs
    got, grad = attention(q, k, v), torch.randn(3, 2, tokens, 5, dtype=torch.float64)
    assert bool(calls) == (tokens not in FEW_TOKENS)
    wanted = torch.softmax(torch.einsum("bhnc,bhmc->bhnm", q, k) / 5**0.5, dim=-1) @ v
    assert_close(got, wanted)
    assert_close(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(wanted, inputs, grad))
    calls.clear()
    for copy in (inputs, [t.to("meta") for t in inputs], [t.bfloat16() for t in inputs]):
        attention(*copy)
    assert len(calls) == (2 if tokens in FEW_TOKENS else 3)
