"""The mixed edge against Eq. 8, and the edge with token selection."""

from collections.abc import Callable

import pytest
import torch
from support import reference

from dasvit.spaces.cell.edges import MixedEdge, PartialEdge

pytestmark = pytest.mark.usefixtures("double")


def test_equation_8(
    tiny_ops: tuple[str, ...], randomise: Callable, assert_same_gradients: Callable
) -> None:
    edge = randomise(MixedEdge(tiny_ops, 8))
    alpha = torch.randn(len(tiny_ops), requires_grad=True)
    x = torch.randn(2, 5, 8, requires_grad=True)
    actual = edge(x, alpha.softmax(-1))
    expected = reference.mixed_edge(tiny_ops, edge.ops, x, reference.softmax(alpha))
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(x)
    assert_same_gradients(
        (actual * direction).sum(),
        (expected * direction).sum(),
        [alpha, x, *edge.parameters()],
    )


def test_one_hot_is_that_operation(tiny_ops: tuple[str, ...], randomise: Callable) -> None:
    edge = randomise(MixedEdge(tiny_ops, 8))
    x = torch.randn(2, 5, 8)
    for o, op in enumerate(edge.ops):
        torch.testing.assert_close(edge(x, torch.eye(len(tiny_ops))[o]), op(x), rtol=0, atol=0)


def test_an_edge_of_nothing_but_zero_gives_zero() -> None:
    x = torch.randn(2, 5, 8)
    assert torch.equal(MixedEdge(("zero",), 8)(x, torch.ones(1)), torch.zeros_like(x))


def test_weight_of_zero_matters_through_the_softmax_only() -> None:
    edge = MixedEdge(("zero", "identity"), 8)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(edge(x, torch.tensor([0.75, 0.25])), 0.25 * x)


def test_one_weight_too_few_is_an_error(tiny_ops: tuple[str, ...]) -> None:
    edge = MixedEdge(tiny_ops, 8)
    with pytest.raises(ValueError, match="shorter"):
        edge(torch.randn(2, 5, 8), torch.ones(len(tiny_ops) - 1))


@pytest.mark.parametrize("token_ratio", [0.25, 0.5, 0.8])
def test_partial_edge(
    token_ratio: float,
    tiny_ops: tuple[str, ...],
    randomise: Callable,
    assert_same_gradients: Callable,
) -> None:
    """The selected tokens go through Eq. 8, the others come out bit for bit."""
    edge = randomise(PartialEdge(MixedEdge(tiny_ops, 8), 8, token_ratio))
    alpha = torch.randn(len(tiny_ops), requires_grad=True)
    x = torch.randn(2, 1 + 9, 8, requires_grad=True)
    actual = edge(x, alpha.softmax(-1))

    kept, positions = reference.select_tokens(edge.selector, x)
    inner = edge.edge
    mixed = reference.mixed_edge(tiny_ops, inner.ops, kept, reference.softmax(alpha))
    torch.testing.assert_close(actual, reference.bypass(x, mixed, positions))
    for b, selected in enumerate(positions):
        bypassed = [n for n in range(10) if n not in selected]
        assert len(bypassed) == 9 - reference.num_selected(9, token_ratio)
        assert torch.equal(actual[b, bypassed], x[b, bypassed])
    direction = torch.randn_like(x)
    params = [alpha, x, *edge.parameters()]
    expected = reference.bypass(x, mixed, positions)
    assert_same_gradients((actual * direction).sum(), (expected * direction).sum(), params)
    grad = torch.autograd.grad((actual * direction).sum(), edge.selector.query.weight)[0]
    assert grad.abs().max() > 0
