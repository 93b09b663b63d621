"""Weights handed from stage to stage, and to the derived network."""

from collections.abc import Callable

import pytest
import torch
from dasvit.spaces.cell.prune import prune

from dasvit.spaces.cell.derive import derive
from dasvit.spaces.cell.genotype import Edge, Genotype, edge_list
from dasvit.spaces.cell.inherit import derived_network, inherit_weights
from dasvit.spaces.cell.network import DASViT
from dasvit.spaces.cell.supernet import SuperNet

SELECTIONS = [(1.0, "input"), (0.5, "input"), (0.5, "edge")]


def _inner(edge: torch.nn.Module) -> torch.nn.Module:
    return getattr(edge, "edge", edge)


@pytest.mark.parametrize(("token_ratio", "token_where"), SELECTIONS)
@pytest.mark.parametrize(
    ("old_depth", "new_depth", "order", "sources"),
    [
        (2, 4, "cyclic", [0, 1, 0, 1]),
        (2, 5, "cyclic", [0, 1, 0, 1, 0]),
        (3, 3, "cyclic", [0, 1, 2]),
        (4, 2, "cyclic", [0, 1]),
        (2, 4, "stretched", [0, 0, 1, 1]),
        (4, 6, "stretched", [0, 0, 1, 2, 2, 3]),
    ],
)
def test_inherit_weights(
    old_depth: int,
    new_depth: int,
    order: str,
    sources: list[int],
    token_ratio: float,
    token_where: str,
    make_supernet: Callable[..., SuperNet],
) -> None:
    settings = {"token_ratio": token_ratio, "token_where": token_where}
    old = make_supernet(num_layers=old_depth, **settings)
    names, _ = prune(old.alpha.detach(), old.edge_ops, 3)
    assert len(set(names)) > 1  # the edges differ
    new = make_supernet(names, num_layers=new_depth, **settings)
    alpha, old_state = (
        new.alpha.detach().clone(),
        {k: v.clone() for k, v in old.state_dict().items()},
    )
    inherit_weights(old, new, order=order)

    expected, compared = {}, 0
    for key in new.state_dict():
        if not key.startswith("cells."):
            expected[key] = alpha if key == "alpha" else old_state[key]
    for layer, cell in enumerate(new.cells):
        for m, edge in enumerate(cell.edges):
            source = old.cells[sources[layer]].edges[m]
            for name, op in zip(names[m], _inner(edge).ops, strict=True):
                twin = _inner(source).ops[old.edge_ops[m].index(name)]
                assert type(op) is type(twin)
                for p, q in zip(op.parameters(), twin.parameters(), strict=True):
                    assert torch.equal(p, q)
                    assert p.data_ptr() != q.data_ptr()  # a copy, not the same memory
                    compared += 1
            if token_where == "edge" and token_ratio < 1:
                assert torch.equal(edge.selector.query.weight, source.selector.query.weight)
                assert torch.equal(edge.selector.key.weight, source.selector.key.weight)
    assert compared > 0
    for key, value in expected.items():
        assert torch.equal(new.state_dict()[key], value), key
    for key, value in old.state_dict().items():
        assert torch.equal(value, old_state[key]), key


@pytest.mark.usefixtures("double")
def test_nothing_pruned_nothing_deeper_is_the_same_function(
    make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    old, new = make_supernet(), make_supernet()
    images, _ = make_batch()
    assert not torch.allclose(new(images), old(images))
    inherit_weights(old, new)
    assert not torch.allclose(new(images), old(images))  # alpha is not touched
    new.alpha.data.copy_(old.alpha)
    assert torch.equal(new(images), old(images))


def _one_hot(model: SuperNet, genotype: Genotype) -> torch.Tensor:
    """Rows of the genotype's edges one-hot; the other rows zero."""
    weights = torch.zeros_like(model.alpha)
    edges = edge_list(model.num_nodes)
    for node, incoming in enumerate(genotype.nodes):
        for edge in incoming:
            m = edges.index((edge.source, node))
            weights[m, model.edge_ops[m].index(edge.operation)] = 1
    return weights


def _assert_equal_functions(model: SuperNet, genotype: Genotype, images: torch.Tensor) -> None:
    """Logits and the gradient to the images."""
    images = images.clone().requires_grad_()
    network = derived_network(model, genotype).to(images.dtype)
    assert isinstance(network, DASViT)
    searched, derived = model(images, _one_hot(model, genotype)), network(images)
    torch.testing.assert_close(derived, searched)
    direction = torch.randn_like(searched)
    left = torch.autograd.grad((searched * direction).sum(), images)[0]
    right = torch.autograd.grad((derived * direction).sum(), images)[0]
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(("token_ratio", "token_where"), [(1.0, "input"), (0.5, "input")])
@pytest.mark.parametrize("num_nodes", [1, 2, 3])
@pytest.mark.usefixtures("double")
def test_one_hot_supernet_is_the_derived_network(
    num_nodes: int,
    token_ratio: float,
    token_where: str,
    make_supernet: Callable[..., SuperNet],
    make_batch: Callable,
) -> None:
    model = make_supernet(
        num_nodes=num_nodes, num_layers=3, token_ratio=token_ratio, token_where=token_where
    )
    images, _ = make_batch()
    _assert_equal_functions(model, derive(model.alpha, model.edge_ops, num_nodes=num_nodes), images)
    for trial in range(4):
        alpha = torch.randn(model.alpha.shape, generator=torch.Generator().manual_seed(trial))
        genotype = derive(alpha, model.edge_ops, num_nodes=num_nodes, edges_per_node=1 + trial % 3)
        _assert_equal_functions(model, genotype, images)


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.usefixtures("double")
def test_one_hot_supernet_is_the_derived_network_with_selection_on_edges(
    num_nodes: int, make_supernet: Callable[..., SuperNet], make_batch: Callable
) -> None:
    """Where every edge stays: a dropped edge's bypassed tokens would have to stay with it."""
    model = make_supernet(num_nodes=num_nodes, num_layers=3, token_ratio=0.5, token_where="edge")
    images, _ = make_batch()
    for trial in range(4):
        alpha = torch.randn(model.alpha.shape, generator=torch.Generator().manual_seed(trial))
        genotype = derive(alpha, model.edge_ops, num_nodes=num_nodes, edges_per_node=9)
        _assert_equal_functions(model, genotype, images)


def test_derived_network_copies_and_leaves_the_supernet_alone(
    make_supernet: Callable[..., SuperNet],
) -> None:
    model = make_supernet(token_ratio=0.5).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network = derived_network(model, derive(model.alpha, model.edge_ops, num_nodes=2))
    assert not network.training
    assert network.patch_embed.img_size == (8, 8)
    assert len(network.blocks) == 2
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_operation_that_the_edge_does_not_hold_is_an_error(
    make_supernet: Callable[..., SuperNet], tiny_edge_ops: tuple[tuple[str, ...], ...]
) -> None:
    model = make_supernet(tiny_edge_ops)
    genotype = Genotype(((Edge(0, "msa_h4"),), (Edge(0, "identity"),)))
    with pytest.raises(ValueError, match=r"\(0, 0\).*'msa_h4'"):
        derived_network(model, genotype)
