"""The encoder of the supernet as a few large products: the same function as `SearchCell`.

The candidates of all edges that leave one node read the same tokens. Their pre-norms have no
affine part of their own (the linear layer behind holds it), so one normalisation serves them all;
their q, k and v are the rows of one matrix, attention with equally many heads is one call, the
hidden units of an edge and their GELU are one. The operation weights scale the output projections,
which are then accumulated: candidates' outputs are held one by one only in an alpha pass on the
first tokens, where nothing else is (`weighted_linear`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasvit.run.seed import capturing
from dasvit.spaces.cell.attention import attention
from dasvit.spaces.cell.edges import (
    MixedEdge,
    SearchCell,
    add_to_node,
    first_channels,
    join_channels,
)
from dasvit.spaces.cell.genotype import NUM_INPUTS, edge_list
from dasvit.spaces.cell.operations import IDENTITY, MLP, MSA, Identity, Zero, scaled
from dasvit.spaces.cell.tokens import TokenSelector, scatter_tokens
from dasvit.spaces.cell.weighted_linear import autocast_dtype, weighted_linear

__all__ = ["FusedCell"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a candidate lies: rows of an input projection, columns of its edge's output one."""

    candidate: int
    rows: tuple[slice, ...]
    columns: slice

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start


class _SourceEdges(nn.Module):
    """The mixed edges that read the same tokens, computed together.

    Args:
        edges: their values are copied.
        dim: embedding dimension C.
        channel_parts: K of `Route`.
    """

    def __init__(self, edges: Sequence[MixedEdge], dim: int, channel_parts: int) -> None:
        super().__init__()
        self.channel_parts = channel_parts
        self.dim = dim = dim // channel_parts
        self.names = [edge.names for edge in edges]
        attention: dict[int, list[tuple[int, int]]] = {}  # (edge, candidate) by number of heads
        hidden: list[list[tuple[int, int]]] = []  # (candidate, width) by edge
        for e, edge in enumerate(edges):
            hidden.append([])
            for i, op in enumerate(edge.ops):
                if isinstance(op, MSA):
                    attention.setdefault(op.heads, []).append((e, i))
                elif isinstance(op, MLP):
                    hidden[e].append((i, op.fc1.out_features))
        self.heads = [(h, [e for e, _ in members]) for h, members in attention.items()]
        self.hidden = [sum(width for _, width in widths) for widths in hidden]
        self.places = _places(attention, hidden, dim)

        self.qkv_weight, self.qkv_bias = _projection(
            3 * dim * sum(map(len, attention.values())), dim
        )
        # Apart for every edge: the gradient of a common one would have to be put together first.
        hidden_layers = [_projection(units, dim) for units in self.hidden]
        self.fc1_weights = nn.ParameterList(weight for weight, _ in hidden_layers)
        self.fc1_biases = nn.ParameterList(bias for _, bias in hidden_layers)
        widths = [max((p.columns.stop for p in places), default=0) for places in self.places]
        self.out_weights = nn.ParameterList(nn.Parameter(torch.empty(dim, w)) for w in widths)
        self.out_biases = nn.ParameterList(
            nn.Parameter(torch.empty(len(places), dim)) for places in self.places
        )
        self.others = nn.ModuleList(
            nn.ModuleDict(
                {
                    str(i): op
                    for i, op in enumerate(edge.ops)
                    if not isinstance(op, MSA | MLP | Identity | Zero)
                }
            )
            for edge in edges
        )
        self.identity = Identity()
        self.foreign = any(True for others in self.others for _ in others.children())
        for e, places in enumerate(self.places):
            candidates = [p.candidate for p in places]
            columns = [i for i, p in enumerate(places) for _ in range(p.width)]
            self.register_buffer(f"fused_{e}", _index(candidates), persistent=False)
            self.register_buffer(f"columns_{e}", _index(columns), persistent=False)
        self.load(edges)

    def views(self, e: int, place: _Place) -> dict[str, list[Tensor]]:
        """A candidate's parameters by their names in `MSA` or `MLP`, as pieces along rows."""
        attention = len(place.rows) == 3
        first, last = ("qkv", "proj") if attention else ("fc1", "fc2")
        weight = self.qkv_weight if attention else self.fc1_weights[e]
        bias = self.qkv_bias if attention else self.fc1_biases[e]
        number = self.places[e].index(place)
        return {
            f"{first}.weight": [weight[rows] for rows in place.rows],
            f"{first}.bias": [bias[rows] for rows in place.rows],
            f"{last}.weight": [self.out_weights[e][:, place.columns]],
            f"{last}.bias": [self.out_biases[e][number]],
        }

    def _pairs(self, edges: Sequence[MixedEdge]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Every parameter of `edges` with its pieces here."""
        for e, edge in enumerate(edges):
            for place in self.places[e]:
                op = dict(edge.ops[place.candidate].named_parameters())
                for name, pieces in self.views(e, place).items():
                    yield op[name], pieces

    @torch.no_grad()
    def load(self, edges: Sequence[MixedEdge]) -> None:
        """Take the values of `edges`, which have the same candidates."""
        for parameter, pieces in self._pairs(edges):
            for piece, values in zip(pieces, parameter.chunk(len(pieces)), strict=True):
                piece.copy_(values)
        for others, edge in zip(self.others, edges, strict=True):
            for i, op in others.named_children():
                op.load_state_dict(edge.ops[int(i)].state_dict())

    @torch.no_grad()
    def store(self, edges: Sequence[MixedEdge]) -> None:
        """Write the values into `edges`, which have the same candidates."""
        for parameter, pieces in self._pairs(edges):
            parameter.copy_(torch.cat(pieces))
        for others, edge in zip(self.others, edges, strict=True):
            for i, op in others.named_children():
                edge.ops[int(i)].load_state_dict(op.state_dict())

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *rows: Float[Tensor, " ops"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], ...]:
        """The outputs of the edges under their operation weights."""
        tokens, x = x, first_channels(x, self.channel_parts)
        # Once for all products under autocast, which would do it for each.
        normalised = F.layer_norm(x, (self.dim,)).to(autocast_dtype(x))
        normalised, x = scaled(normalised, gate), scaled(x, gate)
        inputs = self._attention(normalised)
        return tuple(
            join_channels(
                self._edge(e, x, normalised, row, inputs[e]), tokens, row, self.channel_parts
            )
            for e, row in enumerate(rows)
        )

    def _attention(self, x: Tensor) -> list[list[Tensor]]:
        """By edge, the heads' outputs side by side (batch · tokens, dim) of each attention."""
        found: list[list[Tensor]] = [[] for _ in self.names]
        if not self.heads:
            return found
        batch, tokens, dim = x.shape
        qkv = F.linear(x, self.qkv_weight, self.qkv_bias)
        sizes = [len(edges) * dim for _, edges in self.heads for _ in range(3)]
        parts = qkv.split(sizes, dim=-1)
        for number, (heads, edges) in enumerate(self.heads):
            q, k, v = (
                part.view(batch, tokens, len(edges) * heads, dim // heads).transpose(1, 2)
                for part in parts[3 * number : 3 * number + 3]
            )
            out = attention(q, k, v).transpose(1, 2)
            out = out.reshape(batch * tokens, len(edges) * dim)
            for e, part in zip(edges, out.split(dim, dim=1), strict=True):
                found[e].append(part)
        return found

    def _edge(
        self, e: int, x: Tensor, normalised: Tensor, row: Tensor, inputs: Sequence[Tensor]
    ) -> Tensor:
        terms = []
        if self.places[e]:
            hidden = None
            if self.hidden[e]:
                hidden = F.linear(normalised, self.fc1_weights[e], self.fc1_biases[e])
                hidden = hidden.flatten(0, 1)
            fused = weighted_linear(
                row.index_select(0, self.get_buffer(f"fused_{e}")),
                [place.width for place in self.places[e]],
                self.get_buffer(f"columns_{e}"),
                self.out_weights[e],
                self.out_biases[e],
                inputs,
                hidden,
            )
            # In the tokens' own precision, as they are summed up over the layers.
            terms.append(fused.view(x.shape).to(x.dtype))
        if IDENTITY in self.names[e]:
            terms.append(row[self.names[e].index(IDENTITY)] * self.identity(x))
        terms += [row[int(i)] * op(x) for i, op in self.others[e].named_children()]
        return sum(terms[1:], start=terms[0]) if terms else torch.zeros_like(x)


def _places(
    attention: dict[int, list[tuple[int, int]]], hidden: list[list[tuple[int, int]]], dim: int
) -> list[list[_Place]]:
    """By edge. Rows of q, k and v lie by number of heads: q of all its members, then k, then v;
    columns by number of heads, and then the edge's hidden units."""
    places: list[list[_Place]] = [[] for _ in hidden]
    columns = [0] * len(hidden)
    start = 0
    for members in attention.values():
        size = len(members) * dim
        for j, (e, i) in enumerate(members):
            first = [start + part * size + j * dim for part in range(3)]
            rows = tuple(slice(row, row + dim) for row in first)
            places[e].append(_Place(i, rows, slice(columns[e], columns[e] + dim)))
            columns[e] += dim
        start += 3 * size
    for e, widths in enumerate(hidden):
        start = 0
        for i, width in widths:
            rows = (slice(start, start + width),)
            places[e].append(_Place(i, rows, slice(columns[e], columns[e] + width)))
            columns[e] += width
            start += width
    return places


def _projection(rows: int, dim: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.empty(rows, dim)), nn.Parameter(torch.empty(rows))


def _index(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


class FusedCell(nn.Module):
    """A `SearchCell` in its fused form: the same function of tokens, weights and parameters.

    Dropout acts on single candidates, which are never formed here: it must be 0.

    Args:
        cell: its values are copied.
        recompute: keep only the inputs of each node's edges for the backward pass and compute
            them anew there: less memory for about a third more time.

    Raises:
        ValueError: the cell has dropout.
    """

    def __init__(self, cell: SearchCell, *, recompute: bool = False) -> None:
        super().__init__()
        if cell.dropout > 0:
            raise ValueError(f"a fused cell has no dropout, but got dropout={cell.dropout}")
        self.recompute = recompute
        self._like = partial(
            SearchCell,
            cell.edge_ops,
            cell.dim,
            num_nodes=cell.num_nodes,
            edge_token_ratio=cell.edge_token_ratio,
            channel_parts=cell.channel_parts,
        )
        self.wiring = edge_list(cell.num_nodes)
        by_source: dict[int, list[int]] = {}
        for m, (source, _) in enumerate(self.wiring):
            by_source.setdefault(source, []).append(m)
        selects = cell.edge_token_ratio < 1
        # With token selection on the edges every edge reads tokens of its own.
        self.members = (
            [[m] for m in chain(*by_source.values())] if selects else [*by_source.values()]
        )
        edges = cell.mixed_edges()
        self.groups = nn.ModuleList(
            _SourceEdges([edges[m] for m in members], cell.dim, cell.channel_parts)
            for members in self.members
        )
        self.selectors = nn.ModuleList(
            TokenSelector(cell.dim, cell.edge_token_ratio) for _ in self.members if selects
        )
        self.load(cell)

    def load(self, cell: SearchCell) -> None:
        """Take the values of a cell with the same candidates."""
        for group, edges in self._groups_with(cell):
            group.load(edges)
        selectors = cell.selectors()
        for [m], selector in zip(self.members, self.selectors, strict=False):
            selector.load_state_dict(selectors[m].state_dict())

    def unfused(self) -> SearchCell:
        """A `SearchCell` with these values."""
        like = next(self.parameters())
        with torch.device("meta"):
            cell = self._like()
        cell = cell.to_empty(device=like.device).to(like.dtype)
        for group, edges in self._groups_with(cell):
            group.store(edges)
        selectors = cell.selectors()
        for [m], selector in zip(self.members, self.selectors, strict=False):
            selectors[m].load_state_dict(selector.state_dict())
        return cell

    def _groups_with(self, cell: SearchCell) -> Iterator[tuple[_SourceEdges, list[MixedEdge]]]:
        edges = cell.mixed_edges()
        for members, group in zip(self.members, self.groups, strict=True):
            assert isinstance(group, _SourceEdges)
            yield group, [edges[m] for m in members]

    def forward(
        self,
        before_last: Float[Tensor, "batch tokens dim"],
        last: Float[Tensor, "batch tokens dim"],
        weights: Float[Tensor, "edges ops"],
        gate: Float[Tensor, "batch tokens 1"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """As `SearchCell.forward`."""
        states = [before_last, last]
        rows = weights.unbind(0)
        for number, members in enumerate(self.members):
            source = states[self.wiring[members[0]][0]]
            outputs = self._group(number, source, [rows[m] for m in members], gate)
            for m, out in zip(members, outputs, strict=True):
                add_to_node(states, self.wiring[m][1], out)
        return sum(states[NUM_INPUTS + 1 :], start=states[NUM_INPUTS])

    def _group(
        self, number: int, x: Tensor, rows: Sequence[Tensor], gate: Tensor | None
    ) -> Sequence[Tensor]:
        group = self.groups[number]
        assert isinstance(group, _SourceEdges)
        run: Callable[..., Sequence[Tensor]] = group
        if self.recompute:
            # Registered operations may draw random numbers, and a skip that is dropped; in a CUDA
            # graph none does.
            draws = (group.foreign or group.identity.drop > 0) and not capturing(x.device)
            run = partial(checkpoint, group, use_reentrant=False, preserve_rng_state=draws)
        if not self.selectors:
            return run(x, *rows, gate=gate)
        kept, index, gate = self.selectors[number](x)
        return [scatter_tokens(x, out, index) for out in run(kept, *rows, gate=gate)]
