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


def alphas(kind: str, edge_ops: EdgeOps, seed: int) -> torch.Tensor:
    """Scores of plain DARTS: random, near-equal, equal, or against what mixes tokens."""
    torch.manual_seed(seed)
    alpha = torch.randn(len(edge_ops), len(edge_ops[0]))
    if kind == "flat":
        alpha *= 1e-4
    if kind == "equal":
        alpha *= 0
    if kind == "against":
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


@pytest.mark.parametrize("kind", ["random", "flat", "equal", "against"])
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_every_derived_encoder_sees(kind: str, num_nodes: int) -> None:
    edges = len(edge_list(num_nodes))
    for seed, per_node in itertools.product(range(25), (1, 2, 3)):
        names = (NAMES,) * edges
        scores = alphas(kind, names, seed)
        genotype = derive(scores, names, num_nodes=num_nodes, edges_per_node=per_node)
        assert not is_blind(genotype.operations)
        if seed < 3:
            assert sees(genotype)


@pytest.mark.parametrize("kind", ["random", "flat", "equal", "against"])
def test_something_that_mixes_outlives_every_stage(kind: str) -> None:
    for seed, zero in itertools.product(range(25), ("ranked", "first")):
        edge_ops: EdgeOps = (NAMES,) * 5
        for num_ops in (4, 2):
            scores = alphas(kind, edge_ops, seed)
            edge_ops, columns = prune(scores, edge_ops, num_ops, zero=zero)
            assert columns.shape == (5, num_ops)
            assert not is_blind(itertools.chain(*edge_ops))
            rows = [[edge_ops[edge].index(name) for name in edge_ops[edge]] for edge in range(5)]
            assert rows == [list(range(num_ops))] * 5  # distinct, in their order


def weight(nodes: tuple[tuple[Edge, ...], ...], scores: torch.Tensor) -> float:
    rows = dict(zip(edge_list(len(nodes)), scores.tolist(), strict=True))
    return sum(
        rows[edge.source, node][NAMES.index(edge.operation)]
        for node, edges in enumerate(nodes)
        for edge in edges
    )


def every_encoder(per_node: int) -> list[tuple[tuple[Edge, ...], ...]]:
    """Of one node, then of two: all that derivation can choose among."""
    kept = [name for name in NAMES if name != "zero"]
    nodes = [
        [
            tuple(Edge(s, o) for s, o in zip(sources, operations, strict=True))
            for sources in itertools.combinations(range(node + 2), per_node)
            for operations in itertools.product(kept, repeat=per_node)
        ]
        for node in range(2)
    ]
    return list(itertools.product(*nodes))


@pytest.mark.parametrize("per_node", [1, 2])
def test_the_change_costs_the_least_weight(per_node: int) -> None:
    """Against trying every encoder. One that sees already stays as it is."""
    encoders = every_encoder(per_node)
    blind = {
        nodes: is_blind(edge.operation for edges in nodes for edge in edges) for nodes in encoders
    }
    changed = 0
    for seed in range(40):
        scores = alphas("random" if seed % 2 else "against", (NAMES,) * 5, seed)
        found = derive(scores, (NAMES,) * 5, num_nodes=2, edges_per_node=per_node)
        best = max(weight(nodes, scores) for nodes in encoders if not blind[nodes])
        assert weight(found.nodes, scores) == pytest.approx(best, abs=1e-12)
        first = max(encoders, key=lambda nodes: weight(nodes, scores))
        changed += blind[first]
        if not blind[first]:
            assert found.nodes == first
    assert 10 < changed < 40


def test_random_encoders_see() -> None:
    space = CellSpace(operations=NAMES, dim=8)
    for seed in range(200):
        genotype = random_genotype(space, seed)
        assert not is_blind(genotype.operations)


def test_a_space_without_mixing_is_refused() -> None:
    space = CellSpace(operations=("zero", "identity", "mlp_r3"), dim=8)
    for refuse in (space.check, lambda: random_genotype(space, 0)):
        with pytest.raises(ValueError, match="one that mixes tokens, such as msa_h8") as error:
            refuse()
        assert "\n" not in str(error.value)


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
