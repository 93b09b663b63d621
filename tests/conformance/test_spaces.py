"""Every space through one suite: its supernet, what a stage hands on, and the encoders it holds."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import exhaustive
from support.plugin_operation import TokenConv  # noqa: F401  registers conv_k<int>
from support.search_runs import SIX, make_batch
from torch import Tensor, nn
from torch.testing import assert_close

from dasvit.spaces import CellSpace
from dasvit.spaces.base import EdgeOps, Route
from dasvit.spaces.cell.edges import SearchCell
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.genotype import edge_list, one_hot
from dasvit.spaces.cell.operations import is_blind
from dasvit.spaces.cell.supernet import SuperNet

CELL = CellSpace(operations=SIX, dim=8, patch_size=4)
SPACES = {
    "cell": CELL,
    "one node": replace(CELL, num_nodes=1, operations=("zero", "msa_h2", "msa_h4")),
    "three nodes": replace(
        CELL, num_nodes=3, edges_per_node=3, operations=("mlp_r2", "zero", "msa_h2")
    ),
    "own operation": replace(CELL, edges_per_node=1, operations=("identity", "conv_k3", "mlp_r2")),
}
ROUTES = {
    "all tokens": Route(),
    "selected at the input": Route(token_ratio=0.5),
    "selected on every edge": Route(token_ratio=0.5, token_where="edge"),
    "half of the channels": Route(channel_parts=2),
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
pytestmark = [
    pytest.mark.parametrize("space", SPACES.values(), ids=SPACES),
    pytest.mark.usefixtures("double"),
]


@pytest.fixture
def make(randomise: Callable[[nn.Module], nn.Module]) -> Callable[..., SuperNet]:
    """A supernet of a space on grey 8 × 8 images, random in all parameters."""

    def make(space: CellSpace, edge_ops: EdgeOps | None = None, **settings: Any) -> SuperNet:
        values: dict[str, Any] = {"num_layers": 2, "image_size": 8, "in_channels": 1}
        edge_ops = edge_ops or space.candidates().edge_ops
        supernet = space.supernet(edge_ops, **(values | {"num_classes": 3} | settings))
        randomise(supernet)
        return supernet

    return make


def _literal(cell: nn.Module) -> SearchCell:
    assert isinstance(cell, FusedCell)
    return cell.unfused()


def _columns(space: CellSpace, edge_ops: EdgeOps) -> Tensor:
    return torch.tensor([[space.operations.index(name) for name in names] for names in edge_ops])


@every_route
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_is_literal(space: CellSpace, route: Route, recompute: bool, make: Callable) -> None:
    """Logits, and gradients to the candidates' weights and to every parameter."""
    fused = make(replace(space, recompute=recompute), route=route)
    literal = make(replace(space, fused=False), route=route)
    literal.load_state_dict(fused.state_dict(), strict=False)
    for cell, source in zip(literal.cells, fused.cells, strict=True):
        cell.load_state_dict(_literal(source).state_dict())
    images, rows = make_batch(3)[0], torch.rand(_columns(space, fused.edge_ops).shape)
    found = []
    for model in (fused, literal):
        weights = rows.clone().requires_grad_()
        logits = model(images, weights)
        (logits * torch.arange(9).view(3, 3)).sum().backward()
        found.append((logits, weights.grad))
    assert_close(found[0], found[1])
    # A fused model that holds the gradients where the other holds its values gives them literally.
    with torch.no_grad():
        for p in fused.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
    gradients = {k: v for k, v in fused.named_parameters() if not k.startswith("cells.")}
    for layer, cell in enumerate(fused.cells):
        gradients |= {f"cells.{layer}.{k}": v for k, v in _literal(cell).named_parameters()}
    wanted = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in literal.named_parameters()
    }
    assert_close(gradients, wanted)
    assert sum(bool(grad.any()) for grad in wanted.values()) > 10


@every_route
def test_one_hot_weights_are_the_derived_network(
    space: CellSpace, route: Route, make: Callable, assert_same_gradients: Callable
) -> None:
    """Logits and gradients to the images. With selection on the edges where every edge stays: a
    dropped edge takes along the tokens that bypassed it."""
    supernet, images = make(space, route=route), make_batch(3)[0].requires_grad_()
    for seed in range(3):
        whole = replace(space, edges_per_node=9 if route.token_where == "edge" else 1 + seed)
        genotype = whole.sample(seed)
        weights = torch.tensor(one_hot(genotype, supernet.edge_ops))
        derived = space.network(supernet, genotype)
        assert_same_gradients(derived(images), supernet(images, weights), [images])


@every_route
def test_a_stage_inherits_the_function(space: CellSpace, route: Route, make: Callable) -> None:
    """Of each layer, where what is pruned had no weight; and all around the layers, as copies."""
    old = make(space, route=route)
    scores = torch.rand(_columns(space, old.edge_ops).shape)
    edge_ops, columns = space.prune(scores, old.edge_ops, 2, zero="ranked")
    new = make(space, edge_ops, num_layers=3, route=route)
    before = {key: value.clone() for key, value in old.state_dict().items()}
    space.inherit(old, new, order="cyclic")

    weights = torch.rand(columns.shape)
    wide = torch.zeros_like(scores).scatter(1, columns, weights)
    tokens = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    for cell, source in zip(new.cells, (0, 1, 0), strict=True):
        assert_close(cell(*tokens, weights), old.cells[source](*tokens, wide))
    around = {key for key in before if not key.startswith("cells.")}
    assert {"norm.weight", "head.bias", "embedding.cls_token"} <= around
    assert all(torch.equal(new.state_dict()[key], before[key]) for key in around)
    with torch.no_grad():
        for p in new.parameters():
            p.add_(1.0)
    for key, value in old.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_what_is_kept_and_derived_is_the_best(space: CellSpace) -> None:
    """Against trying everything, on edges with candidates in an order of their own. Where the best
    would be blind, one edge differs (tests/spaces/test_sees.py says which)."""
    shape = _columns(space, space.candidates().edge_ops).shape
    edge_ops = tuple(
        tuple(space.operations[i] for i in torch.randperm(shape[1])) for _ in range(shape[0])
    )
    for seed in range(4):
        scores = torch.rand(shape)
        derived = space.derive(scores, edge_ops, {"seed": seed})
        wanted = exhaustive.derive(scores, edge_ops, space.num_nodes, space.edges_per_node)
        assert derived.provenance == {"seed": seed}
        if is_blind(wanted.operations):
            pairs = zip(derived.nodes, wanted.nodes, strict=True)
            gone = [edge for ours, theirs in pairs for edge in theirs if edge not in ours]
            assert len(gone) == 1 and not is_blind(derived.operations)
        else:
            assert derived == wanted
        for zero in ("ranked", "first"):
            for num_ops in range(1, shape[1] + 1):
                names, columns = space.prune(scores, edge_ops, num_ops, zero=zero)
                rows = zip(scores.tolist(), edge_ops, strict=True)
                best = [exhaustive.prune(row, ops, num_ops, zero) for row, ops in rows]
                kept = tuple(
                    tuple(ops[i] for i in index) for ops, index in zip(edge_ops, best, strict=True)
                )
                if is_blind(itertools.chain(*kept)):
                    assert sum(a != b for a, b in zip(names, kept, strict=True)) == 1
                    assert not is_blind(itertools.chain(*names))
                else:
                    assert columns.tolist() == best and names == kept


def test_encoders_are_of_the_space(space: CellSpace) -> None:
    space.check(draws_nothing=True)
    candidates = space.candidates()
    assert candidates.edge_ops == (space.operations,) * len(edge_list(space.num_nodes))
    assert candidates.operations == space.operations
    assert space.heaviest(len(space.operations)) == candidates.edge_ops
    assert {*space.heaviest(1)} & {("msa_h2",), ("mlp_r2",)}
    assert CellSpace().heaviest(3) == (("msa_h8", "mlp_r3", "mlp_r4"),) * 5
    scores = torch.rand(_columns(space, candidates.edge_ops).shape)
    for genotype in (space.derive(scores, candidates.edge_ops), *map(space.sample, range(9))):
        assert set(genotype.operations) <= set(space.operations) - {"zero"}
        assert [len(edges) for edges in genotype.nodes] == [
            min(space.edges_per_node, node + 2) for node in range(space.num_nodes)
        ]
