"""Embedding and attention-based partial token selection."""

import math
from collections.abc import Callable

import pytest
import torch
from support import reference

from dasvit.spaces.cell.tokens import TokenEmbedding, TokenSelector, num_selected, scatter_tokens

pytestmark = pytest.mark.usefixtures("double")


def _selector(dim: int, token_ratio: float) -> TokenSelector:
    selector = TokenSelector(dim, token_ratio)
    for layer in (selector.query, selector.key):
        torch.nn.init.normal_(layer.weight)
    return selector


def test_embedding_cuts_projects_and_adds(
    randomise: Callable, assert_same_gradients: Callable
) -> None:
    module = randomise(TokenEmbedding(image_size=6, patch_size=2, in_channels=3, dim=8))
    images = torch.randn(2, 3, 6, 6)
    actual, expected = module(images), reference.embedding(module, images)
    assert actual.shape == (2, 1 + 9, 8)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    assert_same_gradients(
        (actual * direction).sum(), (expected * direction).sum(), list(module.parameters())
    )


def test_embedding_starts_xavier_uniform() -> None:
    module = TokenEmbedding(image_size=8, patch_size=4, in_channels=3, dim=96)
    bound = math.sqrt(6 / (4 * 4 * 3 + 96))  # of the linear layer, not of the convolution
    largest = module.patches.proj.weight.abs().max().item()
    assert 0.98 * bound < largest <= bound
    assert not module.patches.proj.bias.any()


@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 7, 4), (3, 16, 6)])
def test_scores_are_equations_13_to_15(
    shape: tuple[int, int, int], assert_same_gradients: Callable
) -> None:
    selector = _selector(shape[-1], 0.5)
    patches = torch.randn(shape, requires_grad=True)
    actual = selector.scores(patches)
    expected = reference.token_scores(patches, selector.query.weight.T, selector.key.weight.T)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    assert_same_gradients(
        (actual * direction).sum(),
        (expected * direction).sum(),
        [patches, selector.query.weight, selector.key.weight],
    )


def test_k_is_the_floor_and_at_least_one() -> None:
    """Against exact arithmetic: 0.7 · 10 is 6.999… in floating point."""
    assert [num_selected(10, ratio) for ratio in (0.7, 0.79, 0.1, 0.09, 1.0)] == [7, 7, 1, 1, 10]
    for patches in (1, 2, 9, 16, 49, 196, 1024):
        for percent in range(1, 101):
            ratio = percent / 100
            assert num_selected(patches, ratio) == reference.num_selected(patches, ratio)


@pytest.mark.parametrize("token_ratio", [0.05, 0.3, 0.5, 0.9, 1.0])
def test_selection_is_exactly_the_best_tokens_in_order(
    token_ratio: float, assert_same_gradients: Callable
) -> None:
    """CLS first, the k best patches in their order, bit for bit, in every precision; the gate is
    exactly 1, its gradient that of a sigmoid."""
    selector = _selector(6, token_ratio)
    tokens = torch.randn(4, 1 + 11, 6)
    tokens[:, 0] = -100  # a CLS of any score stays
    tokens.requires_grad_()
    kept, index, gate = selector(tokens)
    wanted, positions, expected = reference.select_tokens(selector, tokens)
    assert gate is not None and gate.shape == (*index.shape, 1)
    assert index.tolist() == positions
    assert len(positions[0]) == 1 + reference.num_selected(11, token_ratio)
    direction = torch.randn_like(kept)
    params = [tokens, selector.query.weight, selector.key.weight]
    actual, literal = (kept * gate * direction).sum(), (wanted * expected * direction).sum()
    assert_same_gradients(actual, literal, params)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        rounded = tokens.detach().to(dtype)
        kept, index, gate = selector.to(dtype)(rounded)
        assert torch.equal(gate, torch.ones_like(gate))
        for b, chosen in enumerate(index.tolist()):
            assert chosen[0] == 0 and chosen == sorted(set(chosen))
            assert torch.equal(kept[b], rounded[b, chosen])  # exactly X[I]


def test_cls_has_no_part_in_the_scores() -> None:
    selector = _selector(6, 0.5)
    tokens = torch.randn(2, 1 + 8, 6)
    _, before, _ = selector(tokens)
    tokens[:, 0] += 50 * torch.randn(2, 6)
    _, after, _ = selector(tokens)
    assert torch.equal(before, after)


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


def test_scatter_leaves_the_others_as_they_are() -> None:
    tokens = torch.randn(2, 6, 4)
    before = tokens.clone()
    index = torch.tensor([[0, 2, 5], [0, 1, 4]])
    kept = torch.randn(2, 3, 4)
    out = scatter_tokens(tokens, kept, index)
    assert torch.equal(out, reference.bypass(tokens, kept, index.tolist()))
    assert torch.equal(tokens, before)


def test_the_embedding_is_that_of_a_convolution() -> None:
    """Eq. 23 in one product: the same tokens and gradients as timm's, also where sides differ."""
    module = TokenEmbedding(image_size=(8, 12), patch_size=4, in_channels=3, dim=5)
    torch.nn.init.normal_(module.patches.proj.bias)
    images = torch.randn(2, 3, 8, 12, requires_grad=True)
    inputs = [images, *module.patches.proj.parameters()]
    ours, theirs = module(images)[:, 1:], module.patches(images) + module.positions[:, 1:]
    torch.testing.assert_close(ours, theirs)
    factors = torch.randn_like(ours)
    grads = [torch.autograd.grad((t * factors).sum(), inputs) for t in (ours, theirs)]
    torch.testing.assert_close(grads[0], grads[1])


def test_images_of_another_size_are_refused() -> None:
    module = TokenEmbedding(image_size=8, patch_size=4, in_channels=1, dim=5)
    with pytest.raises(ValueError, match=r"images must be \(8, 8\), but got \(8, 16\) pixels"):
        module(torch.zeros(2, 1, 8, 16))
