"""Mixed edges and the encoder DAG, searched and derived, against literal loops."""

from collections.abc import Callable

import pytest
import torch
from support import reference
from torch.testing import assert_close

from dasvit.spaces.cell.edges import DerivedCell, MixedEdge, SearchCell
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Edge, Genotype, edge_list

pytestmark = pytest.mark.usefixtures("double")


def tokens(count: int = 2, *, dim: int = 8) -> list[torch.Tensor]:
    return [torch.randn(2, 1 + 4, dim, requires_grad=True) for _ in range(count)]


def test_equation_8(
    tiny_ops: tuple[str, ...], randomise: Callable, assert_same_gradients: Callable
) -> None:
    """Value and gradients; one-hot weights are the operation itself, bit for bit."""
    edge, [x] = randomise(MixedEdge(tiny_ops, 8)), tokens(1)
    weights = torch.rand(len(tiny_ops), requires_grad=True)
    actual = edge(x, weights)
    expected = reference.mixed_edge(tiny_ops, edge.ops, x, weights)
    assert_close(actual, expected)
    direction = torch.randn_like(x)
    params = [weights, x, *edge.parameters()]
    assert_same_gradients((actual * direction).sum(), (expected * direction).sum(), params)
    for op, one_hot in zip(edge.ops, torch.eye(len(tiny_ops)), strict=True):
        assert_close(edge(x, one_hot), op(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="shorter"):
        edge(x, weights[1:])


@pytest.mark.parametrize("token_ratio", [1.0, 0.5])
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_search_cell(
    num_nodes: int,
    token_ratio: float,
    tiny_ops: tuple[str, ...],
    randomise: Callable,
    assert_same_gradients: Callable,
) -> None:
    edges = len(edge_list(num_nodes))
    # Another order of the candidates on every edge: a row must go to its own edge.
    edge_ops = [tiny_ops[m % 6 :] + tiny_ops[: m % 6] for m in range(edges)]
    cell = randomise(SearchCell(edge_ops, 8, num_nodes=num_nodes, edge_token_ratio=token_ratio))
    assert len(cell.selectors()) == (edges if token_ratio < 1 else 0)
    weights = torch.rand(edges, 6, requires_grad=True)
    inputs = tokens()
    before = [x.detach().clone() for x in inputs]
    actual, expected = cell(*inputs, weights), reference.search_cell(cell, *inputs, weights)
    assert_close(actual, expected)
    assert all(torch.equal(x, old) for x, old in zip(inputs, before, strict=True))
    direction = torch.randn_like(actual)
    params = [weights, *inputs, *cell.parameters()]
    assert_same_gradients((actual * direction).sum(), (expected * direction).sum(), params)


GENOTYPES = {
    "paper": NAMED_GENOTYPES["dasvit_imagenet100"],
    "one node": Genotype(((Edge(1, "mlp_r2"),),)),
    "not in order": Genotype(
        (
            (Edge(1, "mlp_r2"), Edge(0, "msa_h2")),
            (Edge(2, "identity"), Edge(1, "mlp_r0.5")),
            (Edge(3, "msa_h4"), Edge(0, "identity"), Edge(2, "mlp_r2")),
        )
    ),
}


@pytest.mark.parametrize("token_ratio", [1.0, 0.5])
@pytest.mark.parametrize("name", GENOTYPES)
def test_derived_cell(
    name: str, token_ratio: float, randomise: Callable, assert_same_gradients: Callable
) -> None:
    genotype, inputs = GENOTYPES[name], tokens(dim=12)
    cell = randomise(DerivedCell(genotype, 12, edge_token_ratio=token_ratio))
    actual, expected = cell(*inputs), reference.derived_cell(genotype, cell.edges, *inputs)
    assert_close(actual, expected)
    direction = torch.randn_like(actual)
    params = [*inputs, *cell.parameters()]
    assert_same_gradients((actual * direction).sum(), (expected * direction).sum(), params)


def test_the_papers_encoder_by_hand(randomise: Callable) -> None:
    """Eq. 20-22: o0 = f(e_{k-2}) + g(e_{k-1}), o1 = h(o0) + f'(e_{k-2}), e_k = o0 + o1."""
    cell = randomise(DerivedCell(NAMED_GENOTYPES["dasvit_cifar10"], 16))
    e_2, e_1 = tokens(dim=16)
    op = dict(zip(cell.wiring, cell.edges, strict=True))
    o_0 = op[0, 0](e_2) + op[1, 0](e_1)
    o_1 = op[2, 1](o_0) + op[0, 1](e_2)
    assert_close(cell(e_2, e_1), o_0 + o_1)


def test_an_operation_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="msa_h5"):
        DerivedCell(Genotype(((Edge(0, "msa_h5"),),)), 12)
    with pytest.raises(ValueError, match="'sep_k3'"):
        SearchCell([("sep_k3",)] * 5, 12, num_nodes=2)
