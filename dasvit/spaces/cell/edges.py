"""Edges and the encoder ("cell") that they form: a DAG of two inputs and a few nodes.

Eq. 8 is the mixed edge, the weighted sum of its candidates; Eq. 9 and 22 the sums of the DAG.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from dasvit.spaces.cell.genotype import NUM_INPUTS, Genotype, edge_list
from dasvit.spaces.cell.operations import IDENTITY, Zero, apply_gated, build_operation
from dasvit.spaces.cell.tokens import TokenSelector, scatter_tokens

__all__ = [
    "DerivedCell",
    "MixedEdge",
    "PartialEdge",
    "SearchCell",
    "add_to_node",
    "first_channels",
    "join_channels",
]

Used = Sequence[Sequence[bool]] | None
"""Which candidates of each edge are computed; None for all."""


class MixedEdge(nn.Module):
    """All candidates of one edge, summed by their weights.

    The norms of MSA and MLP are without affine part here: the linear layer behind is free to hold
    it, and all candidates can share one normalisation.

    Args:
        names: the candidates, in the order of the weights.
        dim: embedding dimension C.
        dropout: inside the operations.
        channel_parts: K of `Route`; the candidates have the width C / K.
    """

    def __init__(
        self, names: tuple[str, ...], dim: int, *, dropout: float = 0.0, channel_parts: int = 1
    ) -> None:
        super().__init__()
        self.names = names
        self.channel_parts = channel_parts
        width = dim // channel_parts
        self.ops = nn.ModuleList(
            build_operation(name, width, dropout=dropout, norm_affine=False) for name in names
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        weights: Float[Tensor, " ops"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
        used: Sequence[bool] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        tokens, x = x, first_channels(x, self.channel_parts)
        terms = [
            weight * apply_gated(op, x, gate)
            for i, (op, weight) in enumerate(zip(self.ops, weights.unbind(), strict=True))
            # `zero` contributes exactly nothing, to value and gradient.
            if not isinstance(op, Zero) and (used is None or used[i])
        ]
        mixed = sum(terms[1:], start=terms[0]) if terms else x.new_zeros(x.shape)
        return join_channels(mixed, tokens, weights, self.channel_parts)


def first_channels(
    tokens: Float[Tensor, "batch tokens dim"], parts: int
) -> Float[Tensor, "batch tokens width"]:
    """The first of `parts` equal parts of the channels."""
    return tokens if parts == 1 else tokens[..., : tokens.shape[-1] // parts]


def join_channels(
    mixed: Float[Tensor, "batch tokens width"],
    tokens: Float[Tensor, "batch tokens dim"],
    weights: Float[Tensor, " ops"],
    parts: int,
) -> Float[Tensor, "batch tokens dim"]:
    """What an edge passes on: its mixture of the first channels beside the others, which have the
    sum of its weights. Channels are shuffled, the i-th of every part side by side, so that others
    are the first ones on the next edge (PC-DARTS)."""
    if parts == 1:
        return mixed
    others = weights.sum() * tokens[..., mixed.shape[-1] :]
    joined = torch.cat([mixed, others.to(mixed.dtype)], dim=-1)
    return joined.unflatten(-1, (parts, -1)).transpose(-1, -2).flatten(-2)


class PartialEdge(nn.Module):
    """An edge that only the selected tokens go through; the others bypass it unchanged.

    The `token_where="edge"` alternative, after PC-DARTS' partial channels.

    Args:
        edge: a `MixedEdge`, or in a derived network an operation.
        dim: embedding dimension C.
        token_ratio: λ in (0, 1).
    """

    def __init__(self, edge: nn.Module, dim: int, token_ratio: float) -> None:
        super().__init__()
        self.edge = edge
        self.selector = TokenSelector(dim, token_ratio)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        weights: Float[Tensor, " ops"] | None = None,
        gate: None = None,
        used: Sequence[bool] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        kept, index, gate = self.selector(x)
        if weights is None:
            return scatter_tokens(x, apply_gated(self.edge, kept, gate), index)
        return scatter_tokens(x, self.edge(kept, weights, gate, used), index)


class SearchCell(nn.Module):
    """One encoder layer of the supernet: a mixed edge from every source to every later node.

    Args:
        edge_ops: the candidates of each edge, in the order of `edge_list`.
        dim: embedding dimension C.
        num_nodes: intermediate nodes.
        dropout: inside the operations.
        edge_token_ratio: λ for token selection on every edge; 1 for none.
        channel_parts: K of `Route`.
    """

    def __init__(
        self,
        edge_ops: Sequence[tuple[str, ...]],
        dim: int,
        *,
        num_nodes: int,
        dropout: float = 0.0,
        edge_token_ratio: float = 1.0,
        channel_parts: int = 1,
    ) -> None:
        super().__init__()
        self.edge_ops = tuple(edge_ops)
        self.dim = dim
        self.num_nodes = num_nodes
        self.dropout = dropout
        self.edge_token_ratio = edge_token_ratio
        self.channel_parts = channel_parts
        self.edges = nn.ModuleList()
        for names in edge_ops:
            edge: nn.Module = MixedEdge(names, dim, dropout=dropout, channel_parts=channel_parts)
            if edge_token_ratio < 1:
                edge = PartialEdge(edge, dim, edge_token_ratio)
            self.edges.append(edge)
        assert len(self.edges) == len(edge_list(num_nodes))

    def mixed_edges(self) -> list[MixedEdge]:
        """The edges in the order of `edge_list`, without their token selection."""
        inner = [edge.edge if isinstance(edge, PartialEdge) else edge for edge in self.edges]
        return [edge for edge in inner if isinstance(edge, MixedEdge)]

    def selectors(self) -> list[TokenSelector]:
        """The token selection of every edge; none without it."""
        return [edge.selector for edge in self.edges if isinstance(edge, PartialEdge)]

    def forward(
        self,
        before_last: Float[Tensor, "batch tokens dim"],
        last: Float[Tensor, "batch tokens dim"],
        weights: Float[Tensor, "edges ops"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
        used: Used = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """`e_k` from `e_{k-2}` and `e_{k-1}`, under operation weights (one row per edge); the gate
        is that of tokens selected on the input."""
        states = [before_last, last]
        wiring = edge_list(self.num_nodes)
        computed = used or [None] * len(wiring)
        for (source, node), edge, row, some in zip(
            wiring, self.edges, weights.unbind(0), computed, strict=True
        ):
            add_to_node(states, node, edge(states[source], row, gate, some))
        return sum(states[NUM_INPUTS + 1 :], start=states[NUM_INPUTS])


class DerivedCell(nn.Module):
    """One encoder layer of the derived network: the genotype's edges and nothing else.

    Args:
        genotype: the encoder.
        dim: embedding dimension C.
        dropout: inside the operations.
        drop_path: probability with which an operation's output is dropped for an image while
            training (stochastic depth); `identity` is never dropped.
        edge_token_ratio: λ for token selection on every edge; 1 for none.

    Raises:
        ValueError: an operation that is unknown or does not fit `dim`.
    """

    def __init__(
        self,
        genotype: Genotype,
        dim: int,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        edge_token_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.wiring = tuple(
            (edge.source, node) for node, edges in enumerate(genotype.nodes) for edge in edges
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.dropped = tuple(name != IDENTITY for name in genotype.operations)
        self.edges = nn.ModuleList()
        for name in genotype.operations:
            op = build_operation(name, dim, dropout=dropout)
            self.edges.append(
                op if edge_token_ratio >= 1 else PartialEdge(op, dim, edge_token_ratio)
            )

    def forward(
        self,
        before_last: Float[Tensor, "batch tokens dim"],
        last: Float[Tensor, "batch tokens dim"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        states = [before_last, last]
        for (source, node), edge, dropped in zip(
            self.wiring, self.edges, self.dropped, strict=True
        ):
            term = apply_gated(edge, states[source], gate)
            add_to_node(states, node, self.drop_path(term) if dropped else term)
        return sum(states[NUM_INPUTS + 1 :], start=states[NUM_INPUTS])


def add_to_node(states: list[Tensor], node: int, term: Tensor) -> None:
    """Eq. 9: a node is the sum of its incoming edges, which arrive node by node."""
    if len(states) == NUM_INPUTS + node:
        states.append(term)
    else:
        states[NUM_INPUTS + node] = states[NUM_INPUTS + node] + term
