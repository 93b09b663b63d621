"""The candidates of a stage, and the masks that say which of them are of a type."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dasvit.spaces.base import EdgeOps
from dasvit.spaces.cell.operations import IDENTITY, ZERO, operation_kind

__all__ = ["Candidates", "forget_fake_masks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """What may sit on each edge in one stage.

    Attributes:
        edge_ops: the candidates of each edge, equally many per edge.
        operations: those of the whole space, which the first stage begins with.
    """

    edge_ops: EdgeOps
    operations: tuple[str, ...]

    @property
    def types(self) -> tuple[str, ...]:
        """The operation types of the whole space (Eq. 17): all but zero and identity. A type that
        was pruned from every edge is still one of them."""
        kinds = dict.fromkeys(operation_kind(name) for name in self.operations)
        return tuple(kind for kind in kinds if kind not in (ZERO, IDENTITY))

    def mask(self, kind: str, like: Tensor) -> Tensor:
        """1 where a candidate is of a type ("msa", "identity", …), else 0; (edges, ops), with the
        dtype and device of `like`."""
        kept = _fake_mask if isinstance(like, FakeTensor) else _real_mask
        return kept(self.edge_ops, kind, like.dtype, like.device)


def _make_mask(edge_ops: EdgeOps, kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = [[operation_kind(name) == kind for name in names] for names in edge_ops]
    with torch.inference_mode(False):  # whatever mode the first call runs in
        return torch.tensor(rows, dtype=dtype, device=device)


# Kept: on a GPU each would be a copy from the host in every step. For good: a CUDA graph goes on
# reading them from where they lie.
_real_mask = cache(_make_mask)
_fake_mask = cache(_make_mask)


def forget_fake_masks() -> None:
    """Fake tensors must not outlive their mode, nor meet another's."""
    _fake_mask.cache_clear()
