"""Handing trained weights on: from a stage to the next, and to the derived network."""

from typing import Any

import torch
from torch import nn

from dasvit.spaces.cell.derived_network import DerivedViT
from dasvit.spaces.cell.edges import DerivedCell, MixedEdge, PartialEdge, SearchCell
from dasvit.spaces.cell.fused_edges import FusedCell
from dasvit.spaces.cell.genotype import Genotype, edge_list, one_hot
from dasvit.spaces.cell.supernet import SuperNet

__all__ = ["derived_network", "inherit_weights"]


def _mixed(edge: nn.Module) -> MixedEdge:
    inner = edge.edge if isinstance(edge, PartialEdge) else edge
    assert isinstance(inner, MixedEdge)
    return inner


def _unfused(cell: nn.Module) -> SearchCell:
    """The cell itself, or a copy in literal form."""
    if isinstance(cell, FusedCell):
        return cell.unfused()
    assert isinstance(cell, SearchCell)
    return cell


def _copy_operation(source: nn.Module, target: nn.Module) -> None:
    """From a supernet's candidate, whose norm has no affine part, to an operation that has one:
    fresh, it is 1 and 0."""
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"norm.weight", "norm.bias"}


def _copy(source: nn.Module | None, target: nn.Module | None) -> None:
    if source is not None and target is not None:
        target.load_state_dict(source.state_dict())


@torch.no_grad()
def inherit_weights(old: SuperNet, new: SuperNet, *, order: str = "cyclic") -> None:
    """Algorithm 1, line 7: copy embedding, selector, head, and for each layer of `new` the
    surviving operations of a layer of `old`.

    Args:
        order: "cyclic", layer `l` from layer `l mod L_old`; or "stretched", from layer
            `⌊l · L_old / L⌋`.
    """
    _copy(old.embedding, new.embedding)
    _copy(old.selector, new.selector)
    _copy(old.norm, new.norm)
    _copy(old.head, new.head)
    sources = [_unfused(cell) for cell in old.cells]
    for layer, cell in enumerate(new.cells):
        # Paper gap: which layer a deeper net's layer inherits from, see docs/fidelity.md.
        if order == "cyclic":
            source = sources[layer % old.num_layers]
        else:
            source = sources[layer * old.num_layers // new.num_layers]
        target = _unfused(cell)
        for old_edge, new_edge in zip(source.edges, target.edges, strict=True):
            if isinstance(old_edge, PartialEdge) and isinstance(new_edge, PartialEdge):
                _copy(old_edge.selector, new_edge.selector)
            old_ops, new_ops = _mixed(old_edge), _mixed(new_edge)
            for name, op in zip(new_ops.names, new_ops.ops, strict=True):
                _copy(old_ops.ops[old_ops.names.index(name)], op)
        if isinstance(cell, FusedCell):
            cell.load(target)


class _OneHot(nn.Module):
    """A supernet under the weights of one encoder."""

    def __init__(self, supernet: SuperNet, genotype: Genotype) -> None:
        super().__init__()
        self.supernet = supernet
        self.weights = torch.tensor(one_hot(genotype, supernet.edge_ops))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        like = self.supernet.head.weight
        return self.supernet(images, self.weights.to(like))


@torch.no_grad()
def derived_network(supernet: SuperNet, genotype: Genotype) -> nn.Module:
    """The derived network at the supernet's depth with the supernet's weights.

    Token selection stays as it was in the supernet, so that the two see the same tokens: with
    one-hot operation weights the supernet equals this network exactly. (With `token_where="edge"`
    that needs a genotype with all edges: an edge that derivation drops takes along the tokens
    that bypassed it.) Where only a part of the channels goes through the operations
    (`channel_parts`), they are narrower than the derived network's: this is then the supernet
    itself under one-hot weights. The random state is left as it was.

    Raises:
        ValueError: the genotype has an operation that the supernet's edge does not hold.
    """
    if supernet.route.channel_parts > 1:
        return _OneHot(supernet, genotype).train(supernet.training)
    patches: Any = supernet.embedding.patches  # timm types its sizes as less than they are
    with torch.random.fork_rng(devices=[]):
        network = DerivedViT(
            genotype,
            img_size=patches.img_size[0],
            patch_size=patches.patch_size[0],
            in_chans=patches.proj.in_channels,
            num_classes=supernet.head.out_features,
            embed_dim=supernet.dim,
            depth=supernet.num_layers,
            proj_drop_rate=supernet.dropout,
            token_ratio=supernet.route.token_ratio,
            token_where=supernet.route.token_where,
        ).to(supernet.head.weight)
    _copy(supernet.embedding.patches, network.patch_embed)
    network.load_state_dict(
        {"cls_token": supernet.embedding.cls_token, "pos_embed": supernet.embedding.positions},
        strict=False,
    )
    _copy(supernet.selector, network.selector)
    _copy(supernet.norm, network.norm)
    _copy(supernet.head, network.head)
    edges = edge_list(supernet.num_nodes)
    for cell, target in zip(supernet.cells, network.blocks, strict=True):
        assert isinstance(target, DerivedCell)
        source = _unfused(cell)
        for wire, name, op in zip(target.wiring, genotype.operations, target.edges, strict=True):
            old_edge = source.edges[edges.index(wire)]
            old_ops = _mixed(old_edge)
            if name not in old_ops.names:
                raise ValueError(f"the supernet's edge {wire} holds {old_ops.names}, not {name!r}")
            if isinstance(old_edge, PartialEdge) and isinstance(op, PartialEdge):
                _copy(old_edge.selector, op.selector)
                op = op.edge
            _copy_operation(old_ops.ops[old_ops.names.index(name)], op)
    return network.train(supernet.training)
