"""The search network against its equations, and what goes in and out of its layers."""

from collections.abc import Callable

import pytest
import torch
from support import reference
from support.search_runs import SIX, make_batch

from dasvit.spaces.base import Route
from dasvit.spaces.cell.genotype import edge_list
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.spaces.cell.tokens import TokenSelector


@pytest.mark.parametrize(
    ("token_ratio", "token_where"), [(1.0, "input"), (0.5, "input"), (0.5, "edge")]
)
@pytest.mark.parametrize(("num_nodes", "num_layers"), [(1, 3), (2, 3), (3, 1)])
@pytest.mark.usefixtures("double")
def test_literal_supernet(
    num_nodes: int,
    num_layers: int,
    token_ratio: float,
    token_where: str,
    make_supernet: Callable[..., SuperNet],
    assert_same_gradients: Callable,
) -> None:
    """Logits, and gradients to the images, the candidates' weights and every parameter. Candidates
    have another order on every edge: a row must go to its own."""
    edges = len(edge_list(num_nodes))
    model = make_supernet(
        tuple(SIX[m % 6 :] + SIX[: m % 6] for m in range(edges)),
        num_nodes=num_nodes,
        num_layers=num_layers,
        token_ratio=token_ratio,
        token_where=token_where,
    )
    images, weights = make_batch(3)[0].requires_grad_(), torch.rand(edges, 6, requires_grad=True)
    assert_same_gradients(
        model(images, weights),
        reference.supernet(model, images, weights),
        [images, weights, *model.parameters()],
    )


@pytest.mark.parametrize(("token_where", "selectors"), [("input", 1), ("edge", 2 * 5)])
def test_selection_once_or_on_every_edge_or_not_at_all(
    token_where: str, selectors: int, make_supernet: Callable[..., SuperNet]
) -> None:
    """λ = 1: no selector, and what a selector of all tokens would give, bit for bit."""

    def count(model: SuperNet) -> int:
        return sum(isinstance(module, TokenSelector) for module in model.modules())

    assert count(make_supernet(token_ratio=0.5, token_where=token_where)) == selectors
    model = make_supernet(token_ratio=1.0, token_where=token_where)
    assert count(model) == 0
    images, weights = make_batch()[0], torch.rand(5, 6)
    plain = model(images, weights)
    model.selector = TokenSelector(8, 1.0)
    assert torch.equal(model(images, weights), plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edge_ops": (("identity",),) * 4}, r"must have 5 rows .* \[1, 1, 1, 1\]"),
        ({"edge_ops": (("identity", "zero"),) * 4 + (("identity",),)}, r"\[2, 2, 2, 2, 1\]"),
        ({"edge_ops": (("sep_k3",),) * 5}, "'sep_k3'"),
        ({"route": Route(token_ratio=0.0)}, r"must lie in \(0, 1\], but got 0.0"),
        ({"route": Route(token_where="head")}, "must be input or edge, but got 'head'"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: dict, message: str, make_supernet: Callable[..., SuperNet]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_supernet(**settings)
    with pytest.raises(ValueError, match=r"images must be \(8, 8\), but got \(8, 16\) pixels"):
        make_supernet()(torch.zeros(2, 1, 8, 16), torch.rand(5, 6))
