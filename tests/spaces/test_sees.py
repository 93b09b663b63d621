"""No encoder that a search derives, keeps the candidates for, or draws is blind to the image."""

import itertools

import pytest
import torch
from torch import nn

from dasvit.methods import DARTS
from dasvit.run.plugins import plugins_end_here
from dasvit.spaces import CellSpace
from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.derived_network import DerivedViT
from dasvit.spaces.cell.genotype import Edge, Genotype, edge_list
from dasvit.spaces.cell.operations import is_blind, mixes_tokens, register_operation
from dasvit.spaces.cell.prune import prune
from dasvit.spaces.cell.sample import random_genotype
from dasvit.training.networks import check_sees

NAMES = ("zero", "identity", "msa_h2", "mlp_r0.5", "mlp_r3")


def scores_of(seed: int, edge_ops: EdgeOps) -> torch.Tensor:
    """Those of plain DARTS for random alphas, every other time against what mixes tokens."""
    torch.manual_seed(seed)
    alpha = torch.randn(len(edge_ops), len(edge_ops[0]))
    if seed % 2 == 0:
        mixes = torch.tensor([[mixes_tokens(name) for name in names] for names in edge_ops])
        alpha = torch.where(mixes, alpha - 50, alpha)
    return DARTS().scores({"alpha": alpha})


def sees(genotype: Genotype) -> bool:
    """Whether a network's logits depend on its images."""
    torch.manual_seed(0)
    model = DerivedViT(
        genotype, img_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=2, num_classes=3
    )
    one, other = model.eval()(torch.randn(2, 1, 8, 8))
    return not torch.equal(one, other)


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_what_outlives_every_stage_and_what_is_derived_then_sees(num_nodes: int) -> None:
    for seed, zero in itertools.product(range(12), ("ranked", "first")):
        edge_ops: EdgeOps = (NAMES,) * len(edge_list(num_nodes))
        for num_ops in (4, 2):
            edge_ops, _ = prune(scores_of(seed, edge_ops), edge_ops, num_ops, zero=zero)
            assert not is_blind(itertools.chain(*edge_ops))
        for per_node in (1, 2, 3):
            scores = scores_of(seed, edge_ops)
            genotype = derive(scores, edge_ops, num_nodes=num_nodes, edges_per_node=per_node)
            assert not is_blind(genotype.operations)
    assert sees(genotype)


@pytest.mark.parametrize("per_node", [1, 2])
def test_the_change_costs_the_least_weight(per_node: int) -> None:
    """Against trying every encoder of two nodes. One that sees already stays as it is."""
    kept = [name for name in NAMES if name != "zero"]
    nodes = [
        [
            tuple(map(Edge, sources, operations))
            for sources in itertools.combinations(range(node + 2), per_node)
            for operations in itertools.product(kept, repeat=per_node)
        ]
        for node in range(2)
    ]
    encoders = [Genotype(pair) for pair in itertools.product(*nodes)]
    blind = {encoder: is_blind(encoder.operations) for encoder in encoders}
    changed = 0
    for seed in range(24):
        scores = scores_of(seed, (NAMES,) * 5)
        rows = dict(zip(edge_list(2), scores.tolist(), strict=True))
        weights = {
            encoder: sum(
                rows[edge.source, node][NAMES.index(edge.operation)]
                for node, edges in enumerate(encoder.nodes)
                for edge in edges
            )
            for encoder in encoders
        }
        found = derive(scores, (NAMES,) * 5, num_nodes=2, edges_per_node=per_node)
        best = max(weights[encoder] for encoder in encoders if not blind[encoder])
        assert weights[found] == pytest.approx(best, abs=1e-12)
        first = max(encoders, key=lambda encoder: weights[encoder])
        changed += blind[first]
        if not blind[first]:
            assert found == first
    assert 8 < changed < 24


def test_a_space_without_mixing_is_refused() -> None:
    space = CellSpace(operations=("zero", "identity", "mlp_r3"), dim=8)
    for refuse in (space.check, lambda: random_genotype(space, 0)):
        with pytest.raises(ValueError, match="one that mixes tokens, such as msa_h8"):
            refuse()


class Mean(nn.Module):
    """Every token becomes the mean of all."""

    def __init__(self, dim: int, **_: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).mean(dim=1, keepdim=True).expand_as(x)


def test_an_operation_of_ones_own_says_it() -> None:
    with plugins_end_here():
        register_operation("mean", Mean, mixes_tokens=True)
        register_operation("quiet", Mean)
        assert mixes_tokens("mean") and not mixes_tokens("quiet")
        CellSpace(operations=("identity", "mean"), dim=8).check()
        names = ("identity", "mean")
        scores = torch.tensor([[0.9, 0.1], [0.8, 0.2]], dtype=torch.float64)
        found = derive(scores, (names, names), num_nodes=1)
        assert found.nodes == ((Edge(0, "identity"), Edge(1, "mean")),)
        assert sees(found)


def test_a_blind_encoder_is_refused_unless_the_pool_mixes() -> None:
    blind = Genotype(((Edge(0, "identity"), Edge(1, "mlp_r3")),))
    with pytest.raises(ValueError, match=r"x\.json: none of its operations .*mixes tokens"):
        check_sees(blind, "x.json")
    check_sees(blind, "x.json", pool="avg")
    assert not sees(blind)
