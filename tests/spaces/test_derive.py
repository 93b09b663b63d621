"""From scores to what a stage keeps and to the genotype, by hand. (Against trying everything:
tests/conformance/test_spaces.py.)"""

import math

import pytest
import torch

from dasvit.methods import DARTS
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.genotype import Edge, Genotype
from dasvit.spaces.cell.prune import prune

NAMES = ("zero", "identity", "msa_h8", "mlp_r3")
MORE = ("zero", "identity", "msa_h8", "msa_h12", "mlp_r0.5", "mlp_r3")
LOW = -9.0


def scores(*rows: list[float]) -> torch.Tensor:
    """Those of plain DARTS for alphas."""
    return DARTS().scores({"alpha": torch.tensor(rows)})


def test_zero_is_left_out_but_weakens_its_edge() -> None:
    """The softmax includes zero: a large zero takes strength from the edge's operations."""
    found = derive(
        scores(
            [5.0, 1.0, 0.0, 0.0],  # e_{k-2} → o_0; zero strongest: identity all the same
            [5.0, 0.0, 0.0, 1.0],
            [9.0, 2.0, 0.0, 0.0],  # the largest alpha into o_1, but zero leaves it nothing
            [LOW, 0.0, 1.0, 0.0],
            [LOW, 0.0, 0.0, 1.0],
        ),
        (NAMES,) * 5,
        num_nodes=2,
    )
    assert found == Genotype(
        ((Edge(0, "identity"), Edge(1, "mlp_r3")), (Edge(1, "msa_h8"), Edge(2, "mlp_r3")))
    )


def test_ties_go_to_the_earlier() -> None:
    """Edge and candidate, whatever its name; so in pruning."""
    first_two = (Edge(0, "identity"), Edge(1, "identity"))
    found = derive(torch.zeros(5, 4), (NAMES,) * 5, num_nodes=2)
    assert found == Genotype(((Edge(0, "msa_h8"), Edge(1, "identity")), first_two))  # one that sees
    reordered = (("mlp_r3", "zero", "msa_h8", "identity"),) * 5
    assert set(derive(torch.zeros(5, 4), reordered, num_nodes=2).operations[1:]) == {"mlp_r3"}
    assert prune(torch.zeros(1, 6), (MORE,), 3)[0] == (MORE[:3],)
    tied = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
    assert prune(tied, (MORE,), 4)[0] == (("zero", "identity", "msa_h12", "mlp_r3"),)


def test_alphas_that_tie_as_float32_weights() -> None:
    """They are told apart by scores in float64, and the larger one stays."""
    row = [1.540996, LOW, -0.2934289, -0.29342887]
    weights = torch.tensor(row).softmax(dim=-1)
    assert weights[2] == weights[3] and row[3] > row[2]
    sees = [LOW, LOW, 9.0, 0.0]
    assert prune(scores(row, sees), (NAMES,) * 2, 2)[0][0] == ("zero", "mlp_r3")
    found = derive(scores(*[row] * 4, sees), (NAMES,) * 5, num_nodes=2)
    assert sorted(found.operations) == ["mlp_r3", "mlp_r3", "mlp_r3", "msa_h8"]


def test_what_cannot_be_is_an_error() -> None:
    ops = (("identity",), ("identity",), ("identity",), ("zero",), ("identity",))
    with pytest.raises(ValueError, match="source 1 to node o_1 holds nothing but zero"):
        derive(torch.zeros(5, 1), ops, num_nodes=2)
    for shape in ((4, 4), (5, 3)):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            derive(torch.zeros(shape), (NAMES,) * 5, num_nodes=2)
    with pytest.raises(ValueError, match="cannot keep 7 of 6"):
        prune(torch.zeros(5, 6), (MORE,) * 5, 7)
    with pytest.raises(ValueError, match="zero must be ranked or first, but got 'last'"):
        prune(torch.zeros(5, 6), (MORE,) * 5, 3, zero="last")
    bad = torch.full((5, 4), math.nan)
    with pytest.raises(ValueError, match="scores must be finite"):
        prune(bad, (NAMES,) * 5, 2)
    with pytest.raises(ValueError, match="scores must be finite"):
        derive(bad, (NAMES,) * 5, num_nodes=2)
