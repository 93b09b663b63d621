"""Pruning between the stages."""

import pytest
import torch
from dasvit.spaces.cell.prune import first_stage_ops, prune
from support import reference

NAMES = ("zero", "identity", "msa_h8", "msa_h12", "mlp_r0.5", "mlp_r3")


def test_first_stage_holds_everything_everywhere() -> None:
    assert first_stage_ops(list(NAMES), 2) == (NAMES,) * 5
    assert first_stage_ops(NAMES, 3) == (NAMES,) * 9


@pytest.mark.parametrize("zero", ["ranked", "first"])
@pytest.mark.parametrize("num_ops", [1, 3, 5, 6])
def test_prune_keeps_the_largest_of_each_edge(num_ops: int, zero: str) -> None:
    """Against trying every subset, each edge with candidates of its own."""
    generator = torch.Generator().manual_seed(num_ops)
    for _ in range(10):
        alpha = torch.randn(5, 6, generator=generator)
        edge_ops = tuple(
            tuple(NAMES[i] for i in torch.randperm(6, generator=generator)) for _ in range(5)
        )
        names, kept = prune(alpha, edge_ops, num_ops, zero=zero)
        assert kept.shape == (5, num_ops)
        for m in range(5):
            index = reference.prune(alpha[m].tolist(), edge_ops[m], num_ops, zero)
            assert names[m] == tuple(edge_ops[m][i] for i in index)
            assert torch.equal(kept[m], alpha[m, index])  # values carried, order kept


def test_edges_keep_different_candidates() -> None:
    alpha = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    edge_ops = (("identity", "msa_h8", "mlp_r3"), ("identity", "msa_h8", "mlp_r3"))
    names, kept = prune(alpha, edge_ops, 2)
    assert names == (("identity", "mlp_r3"), ("msa_h8", "mlp_r3"))
    assert torch.equal(kept, torch.tensor([[3.0, 2.0], [2.0, 3.0]]))


def test_ties_keep_the_earlier() -> None:
    names, _ = prune(torch.zeros(1, 6), (NAMES,), 3)
    assert names == (NAMES[:3],)
    names, _ = prune(torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]), (NAMES,), 4)
    assert names == (("zero", "identity", "msa_h12", "mlp_r3"),)


def test_zero_ranked_or_first() -> None:
    alpha = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    assert prune(alpha, (NAMES,), 3)[0] == (("zero", "mlp_r0.5", "mlp_r3"),)
    assert prune(alpha, (NAMES,), 3, zero="ranked")[0] == (("zero", "mlp_r0.5", "mlp_r3"),)
    assert prune(alpha, (NAMES,), 3, zero="first")[0] == (("msa_h12", "mlp_r0.5", "mlp_r3"),)
    # Nothing to drop: zero stays.
    assert prune(alpha, (NAMES,), 6, zero="first")[0] == (NAMES,)


def test_input_is_left_alone() -> None:
    alpha = torch.randn(5, 6)
    before = alpha.clone()
    _, kept = prune(alpha, (NAMES,) * 5, 3)
    kept += 1
    assert torch.equal(alpha, before)


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot keep 7 of 6"):
        prune(torch.zeros(5, 6), (NAMES,) * 5, 7)
