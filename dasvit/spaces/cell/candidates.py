"""The candidates of a stage, and the masks that say which of them are of a type."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.genotype import NUM_INPUTS
from dasvit.spaces.cell.operations import IDENTITY, ZERO, mixes_tokens, operation_kind

__all__ = ["MIXING", "Candidates", "forget_fake_masks"]

MIXING = "*mixing"
"""In the place of a type: all candidates that mix tokens."""

_DRAWS = 64
"""Of these the first one that sees the image is taken. Where one candidate in eight mixes tokens,
all 64 of two nodes are blind once in 10¹⁷ draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """What may sit on each edge in one stage.

    Attributes:
        edge_ops: the candidates of each edge, equally many per edge.
        operations: those of the whole space, which the first stage begins with.
        edges_per_node: incoming edges that an encoder keeps at each node.
    """

    edge_ops: EdgeOps
    operations: tuple[str, ...]
    edges_per_node: int = 2

    @property
    def types(self) -> tuple[str, ...]:
        """The operation types of the whole space (Eq. 17): all but zero and identity. A type that
        was pruned from every edge is still one of them."""
        kinds = dict.fromkeys(operation_kind(name) for name in self.operations)
        return tuple(kind for kind in kinds if kind not in (ZERO, IDENTITY))

    def mask(self, kind: str, like: Tensor) -> Tensor:
        """1 where a candidate is of a type ("msa", "identity", …) or `MIXING` tokens, else 0;
        (edges, ops), with the dtype and device of `like`."""
        kept = _fake_mask if isinstance(like, FakeTensor) else _real_mask
        return kept(self.edge_ops, kind, like.dtype, like.device)

    def draw(self, like: Tensor) -> Tensor:
        """An encoder drawn as `random_genotype` draws, as the weights of the candidates: 1 for its
        operations, else 0; (edges, ops), with the dtype and device of `like`, of whose generator it
        is drawn. Nothing waits for the device."""
        num_edges, num_ops = len(self.edge_ops), len(self.edge_ops[0])
        shape = _DRAWS, num_edges, num_ops
        chances = torch.rand(shape, dtype=like.dtype, device=like.device)
        best = (chances - 2 * self.mask(ZERO, like)).argmax(dim=2, keepdim=True)
        encoders = torch.zeros_like(chances).scatter(2, best, 1.0)
        start, sources = 0, NUM_INPUTS
        while start < num_edges:
            order = torch.rand(shape[0], sources, dtype=like.dtype, device=like.device)
            left_out = order.argsort(dim=1)[:, self.edges_per_node :, None]
            node = encoders[:, start : start + sources]
            node.scatter_(1, left_out.expand(-1, -1, num_ops), 0.0)
            start, sources = start + sources, sources + 1
        sees = (encoders * self.mask(MIXING, like)).flatten(1).sum(dim=1) > 0
        first = sees.to(like.dtype).argmax(dim=0, keepdim=True)
        return encoders.index_select(0, first)[0]


def _make_mask(edge_ops: EdgeOps, kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = [
        [mixes_tokens(name) if kind == MIXING else operation_kind(name) == kind for name in names]
        for names in edge_ops
    ]
    with torch.inference_mode(False):  # whatever mode the first call runs in
        return torch.tensor(rows, dtype=dtype, device=device)


# Kept: on a GPU each would be a copy from the host in every step. For good: a CUDA graph goes on
# reading them from where they lie.
_real_mask = cache(_make_mask)
_fake_mask = cache(_make_mask)


def forget_fake_masks() -> None:
    """Fake tensors must not outlive their mode, nor meet another's."""
    _fake_mask.cache_clear()
