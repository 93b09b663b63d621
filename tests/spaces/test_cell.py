"""The encoder DAG, searched and derived, against literal loops."""

from collections.abc import Callable

import pytest
import torch
from support import reference

from dasvit.spaces.cell.edges import DerivedCell, SearchCell
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Edge, Genotype, edge_list

pytestmark = pytest.mark.usefixtures("double")


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
    alpha = torch.randn(edges, 6, requires_grad=True)
    e_2 = torch.randn(2, 1 + 4, 8, requires_grad=True)
    e_1 = torch.randn(2, 1 + 4, 8, requires_grad=True)
    before = e_2.detach().clone(), e_1.detach().clone()
    actual = cell(e_2, e_1, alpha.softmax(-1))
    expected = reference.search_cell(cell, e_2, e_1, reference.softmax(alpha))
    torch.testing.assert_close(actual, expected)
    assert torch.equal(e_2, before[0])
    assert torch.equal(e_1, before[1])
    direction = torch.randn_like(actual)
    assert_same_gradients(
        (actual * direction).sum(),
        (expected * direction).sum(),
        [alpha, e_2, e_1, *cell.parameters()],
    )


def test_search_cell_without_selection_has_no_selector(tiny_ops: tuple[str, ...]) -> None:
    cell = SearchCell([tiny_ops] * 5, 8, num_nodes=2)
    assert not [name for name, _ in cell.named_parameters() if "selector" in name]


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
    genotype, dim = GENOTYPES[name], 12
    cell = randomise(DerivedCell(genotype, dim, edge_token_ratio=token_ratio))
    e_2 = torch.randn(2, 1 + 4, dim, requires_grad=True)
    e_1 = torch.randn(2, 1 + 4, dim, requires_grad=True)
    actual = cell(e_2, e_1)
    expected = reference.derived_cell(genotype, cell.edges, e_2, e_1)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    assert_same_gradients(
        (actual * direction).sum(), (expected * direction).sum(), [e_2, e_1, *cell.parameters()]
    )


def test_the_papers_encoder_by_hand(randomise: Callable) -> None:
    """Eq. 20-22: o0 = f(e_{k-2}) + g(e_{k-1}), o1 = h(o0) + f'(e_{k-2}), e_k = o0 + o1."""
    cell = randomise(DerivedCell(NAMED_GENOTYPES["dasvit_cifar10"], 16))
    e_2, e_1 = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    into_o0 = dict(zip(cell.wiring[:2], cell.edges[:2], strict=True))
    into_o1 = dict(zip(cell.wiring[2:], cell.edges[2:], strict=True))
    o_0 = into_o0[0, 0](e_2) + into_o0[1, 0](e_1)
    o_1 = into_o1[2, 1](o_0) + into_o1[0, 1](e_2)
    torch.testing.assert_close(cell(e_2, e_1), o_0 + o_1)


def test_an_operation_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="msa_h5"):
        DerivedCell(Genotype(((Edge(0, "msa_h5"),),)), 12)
    with pytest.raises(ValueError, match="'sep_k3'"):
        SearchCell([("sep_k3",)] * 5, 12, num_nodes=2)
