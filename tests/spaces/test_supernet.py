"""The search network against its equations, and what goes in and out of its layers."""

from collections.abc import Callable

import pytest
import torch
from support import reference

from dasvit.spaces.base import EdgeOps, Route
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.spaces.cell.tokens import TokenSelector

SELECTIONS = [(1.0, "input"), (0.5, "input"), (0.5, "edge")]


@pytest.mark.parametrize(("token_ratio", "token_where"), SELECTIONS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.usefixtures("double")
def test_literal_supernet(
    num_layers: int,
    token_ratio: float,
    token_where: str,
    tiny_edge_ops: EdgeOps,
    make_supernet: Callable[..., SuperNet],
    make_batch: Callable,
    assert_same_gradients: Callable,
) -> None:
    """Logits, and gradients to the candidates' weights and every parameter, candidates differing
    by edge."""
    model = make_supernet(
        tiny_edge_ops, num_layers=num_layers, token_ratio=token_ratio, token_where=token_where
    )
    images, weights = make_batch()[0], torch.rand(5, 3, requires_grad=True)
    actual, expected = model(images, weights), reference.supernet(model, images, weights)
    assert actual.shape == (3, 3)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    params = [weights, *model.parameters()]
    assert_same_gradients((actual * direction).sum(), (expected * direction).sum(), params)


@pytest.mark.parametrize("token_where", ["input", "edge"])
def test_ratio_one_is_no_selection(
    token_where: str, make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    """λ = 1: no selector, and what a selector of all tokens would give, bit for bit."""
    model = make_supernet(token_ratio=1.0, token_where=token_where)
    assert not [module for module in model.modules() if isinstance(module, TokenSelector)]
    images, weights = make_batch()[0], torch.rand(5, 6)
    plain = model(images, weights)
    model.selector = TokenSelector(8, 1.0)
    assert torch.equal(model(images, weights), plain)


@pytest.mark.parametrize(
    ("token_where", "selectors", "tokens"), [("input", 1, 1 + 2), ("edge", 3 * 5, 1 + 4)]
)
def test_selection_and_the_inputs_of_every_layer(
    token_where: str,
    selectors: int,
    tokens: int,
    make_supernet: Callable[..., SuperNet],
    make_batch: Callable,
) -> None:
    """Once at the input or on every edge; a layer reads the outputs of the two before it, the first
    one Z_0 twice."""
    model = make_supernet(num_layers=3, token_ratio=0.5, token_where=token_where)
    assert sum(isinstance(m, TokenSelector) for m in model.modules()) == selectors
    seen: list[tuple[torch.Tensor, ...]] = []
    for cell in model.cells:
        cell.register_forward_hook(lambda _, args, out: seen.append((*args[:2], out)))
    images, _ = make_batch()
    model(images, torch.rand(5, 6))
    z_0 = model.embedding(images)
    if model.selector is not None:
        z_0, _ = model.selector(z_0)
    outputs = [z_0, z_0, *(out for *_, out in seen)]
    assert {out.shape[1] for out in outputs} == {tokens}
    for layer, (before_last, last, _) in enumerate(seen):
        assert torch.equal(before_last, outputs[layer])
        assert torch.equal(last, outputs[layer + 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edge_ops": (("identity",),) * 4}, r"must have 5 rows .* \[1, 1, 1, 1\]"),
        ({"edge_ops": (("identity",),) * 6}, "must have 5 rows"),
        (
            {"edge_ops": (("identity", "zero"),) * 4 + (("identity",),)},
            r"must have 5 rows .* \[2, 2, 2, 2, 1\]",
        ),
        ({"route": Route(token_ratio=0.0)}, r"must lie in \(0, 1\], but got 0.0"),
        ({"route": Route(token_where="head")}, "must be input or edge, but got 'head'"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: dict, message: str, make_supernet: Callable[..., SuperNet]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_supernet(**settings)
