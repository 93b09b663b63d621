"""Attention-based partial token selection."""

import math
from collections.abc import Callable

import pytest
import torch
from support import reference

from dasvit.spaces.cell.tokens import TokenSelector, num_selected

pytestmark = pytest.mark.usefixtures("double")


def test_k_is_the_floor_and_at_least_one() -> None:
    """Against exact arithmetic: 0.7 · 10 is 6.999… in floating point."""
    assert [num_selected(10, ratio) for ratio in (0.7, 0.79, 0.1, 0.09, 1.0)] == [7, 7, 1, 1, 10]
    for patches in (1, 2, 9, 16, 49, 196, 1024):
        for percent in range(1, 101):
            ratio = percent / 100
            assert num_selected(patches, ratio) == reference.num_selected(patches, ratio)


@pytest.mark.parametrize("token_ratio", [0.05, 0.5, 1.0])
def test_selection_is_exactly_the_best_tokens_in_order(
    token_ratio: float, assert_same_gradients: Callable
) -> None:
    """Eq. 13-15. CLS first, the k best patches in their order, bit for bit, in every precision; the
    gate is exactly 1, its gradient that of a sigmoid."""
    selector = TokenSelector(6, token_ratio)
    for layer in (selector.query, selector.key):
        torch.nn.init.normal_(layer.weight)
    tokens = torch.randn(4, 1 + 11, 6)
    tokens[:, 0] = -100  # a CLS of any score stays
    tokens.requires_grad_()
    kept, index, gate = selector(tokens)
    wanted, positions, expected = reference.select_tokens(selector, tokens)
    assert gate is not None and gate.shape == (*index.shape, 1)
    assert index.tolist() == positions
    assert len(positions[0]) == 1 + reference.num_selected(11, token_ratio)
    params = [tokens, selector.query.weight, selector.key.weight]
    assert_same_gradients(kept * gate, wanted * expected, params)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        rounded = tokens.detach().to(dtype)
        kept, index, gate = selector.to(dtype)(rounded)
        assert torch.equal(gate, torch.ones_like(gate))
        for b, chosen in enumerate(index.tolist()):
            assert chosen[0] == 0 and chosen == sorted(set(chosen))
            assert torch.equal(kept[b], rounded[b, chosen])  # exactly X[I]


def test_gradient_to_one_tokens_score_is_closed_form() -> None:
    """dim 1, W_Q = W_K = 1, two patches of which one stays: everything by hand."""
    selector = TokenSelector(1, 0.5)
    with torch.no_grad():
        selector.query.weight.fill_(1.0)
        selector.key.weight.fill_(1.0)
    tokens = torch.tensor([[[5.0], [1.0], [3.0]]])
    _, index, gate = selector(tokens)
    assert index.tolist() == [[0, 2]]  # scores 1·2 and 3·2
    grad = torch.autograd.grad(gate.sum(), selector.query.weight)[0]
    sigma = 1 / (1 + math.exp(-6.0))
    assert grad.item() == pytest.approx(sigma * (1 - sigma) * 6)  # σ'(s) · ∂s/∂W_Q
    with torch.no_grad():
        assert selector(tokens)[2] is None
