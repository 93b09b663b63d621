"""From alpha to genotype, by hand and against trying every encoder."""

import pytest
import torch
from support import reference

from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.genotype import Edge, Genotype

NAMES = ("zero", "identity", "msa_h8", "mlp_r3")
LOW = -9.0


def test_two_strongest_edges_with_their_strongest_operations() -> None:
    alpha = torch.tensor(
        [
            [LOW, 0.0, 2.0, LOW],  # e_{k-2} → o_0: msa
            [LOW, 3.0, LOW, 0.0],  # e_{k-1} → o_0: identity
            [LOW, 0.0, 0.5, 0.0],  # e_{k-2} → o_1: the weakest
            [LOW, LOW, LOW, 5.0],  # e_{k-1} → o_1: mlp
            [LOW, LOW, 1.0, 0.0],  # o_0 → o_1: msa
        ]
    )
    found = derive(alpha, (NAMES,) * 5, num_nodes=2)
    assert found == Genotype(
        ((Edge(0, "msa_h8"), Edge(1, "identity")), (Edge(1, "mlp_r3"), Edge(2, "msa_h8")))
    )


def test_zero_strongest_is_excluded_but_weakens_its_edge() -> None:
    """The softmax includes zero: a large zero takes strength from the edge's operations."""
    alpha = torch.tensor(
        [
            [5.0, 1.0, 0.0, 0.0],  # zero strongest: identity all the same
            [5.0, 0.0, 0.0, 1.0],
            [9.0, 2.0, 0.0, 0.0],  # the largest alpha into o_1, but zero leaves it nothing
            [LOW, 0.0, 1.0, 0.0],
            [LOW, 0.0, 0.0, 1.0],
        ]
    )
    found = derive(alpha, (NAMES,) * 5, num_nodes=2)
    assert found == Genotype(
        ((Edge(0, "identity"), Edge(1, "mlp_r3")), (Edge(1, "msa_h8"), Edge(2, "mlp_r3")))
    )
    assert "zero" not in found.operations


def test_strength_is_a_softmax_weight_and_not_an_alpha() -> None:
    """A constant added to a row changes nothing, though its alphas become the largest."""
    alpha = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    shifted = alpha + torch.tensor([[10.0], [0.0], [-10.0], [5.0], [0.0]])
    assert derive(alpha, (NAMES,) * 5, num_nodes=2) == derive(shifted, (NAMES,) * 5, num_nodes=2)


def test_ties_go_to_the_earlier_edge_and_candidate() -> None:
    found = derive(torch.zeros(5, 4), (NAMES,) * 5, num_nodes=2)
    first_two = (Edge(0, "identity"), Edge(1, "identity"))
    assert found == Genotype((first_two, first_two))
    reordered = (("mlp_r3", "zero", "msa_h8", "identity"),) * 5
    assert set(derive(torch.zeros(5, 4), reordered, num_nodes=2).operations) == {"mlp_r3"}


@pytest.mark.parametrize("edges_per_node", [1, 2, 3])
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_against_trying_every_encoder(num_nodes: int, edges_per_node: int) -> None:
    generator = torch.Generator().manual_seed(10 * num_nodes + edges_per_node)
    edges = len(reference.edges_of(num_nodes))
    for trial in range(6):
        alpha = (0.3 + trial) * torch.randn(edges, 4, generator=generator)
        edge_ops = tuple(
            tuple(NAMES[i] for i in torch.randperm(4, generator=generator)) for _ in range(edges)
        )
        found = derive(alpha, edge_ops, num_nodes=num_nodes, edges_per_node=edges_per_node)
        expected = reference.derive(alpha, edge_ops, num_nodes, edges_per_node)
        assert found == expected


def test_pure_and_on_a_parameter() -> None:
    alpha = torch.nn.Parameter(torch.randn(5, 4))
    before = alpha.detach().clone()
    found = derive(alpha, (NAMES,) * 5, num_nodes=2, provenance={"seed": 3})
    assert found == derive(alpha, (NAMES,) * 5, num_nodes=2)
    assert found.provenance == {"seed": 3}
    assert torch.equal(alpha, before)
    assert alpha.grad is None


def test_an_edge_of_nothing_but_zero_is_an_error() -> None:
    edge_ops = (("identity",), ("identity",), ("identity",), ("zero",), ("identity",))
    with pytest.raises(ValueError, match="source 1 to node o_1 holds nothing but zero"):
        derive(torch.zeros(5, 1), edge_ops, num_nodes=2)


def test_rows_must_match() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        derive(torch.zeros(4, 4), (NAMES,) * 5, num_nodes=2)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        derive(torch.zeros(5, 3), (NAMES,) * 5, num_nodes=2)
