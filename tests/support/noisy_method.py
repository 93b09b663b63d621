"""A method that uses every hook, and keeps what it was called with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dasvit.methods import DARTS
from dasvit.spaces.cell.candidates import Candidates

Arch = Mapping[str, Tensor]


class Call(NamedTuple):
    """Of a hook: its name, the share that is done, and copies of the tensors that it was given."""

    hook: str
    t: float
    tensors: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Noisy(DARTS):
    """Two tensors, noise, other weights in training, a penalty that grows, and scores by one of the
    tensors alone."""

    name: ClassVar[str] = "noisy"
    calls: ClassVar[list[Call]] = []

    @classmethod
    def note(cls, hook: str, t: Tensor, tensors: Arch) -> None:
        if not t.is_meta:  # the check before a search
            copies = {name: value.detach().clone() for name, value in tensors.items()}
            cls.calls.append(Call(hook, float(t), copies))

    def parameters(self, candidates: Candidates) -> dict[str, Tensor]:
        shape = len(candidates.edge_ops), len(candidates.edge_ops[0])
        return {"alpha": torch.randn(shape), "beta": torch.randn(shape)}

    def noise(self, arch: Arch, t: Tensor) -> dict[str, Tensor]:
        self.note("noise", t, arch)
        return {"factor": 1 + torch.rand_like(arch["alpha"])}

    def weights(self, arch: Arch, noise: Arch, t: Tensor) -> Tensor:
        self.note("weights", t, noise)
        return (arch["alpha"] * noise.get("factor", 1) + arch["beta"]).softmax(-1)

    def train_weights(self, arch: Arch, noise: Arch, t: Tensor) -> Tensor:
        self.note("train_weights", t, noise)
        return (arch["alpha"] * noise["factor"]).softmax(-1)

    def penalty(self, arch: Arch, weights: Tensor, candidates: Candidates, t: Tensor) -> Tensor:
        return t * arch["beta"].square().mean()

    def scores(self, arch: Arch) -> Tensor:
        return arch["beta"].detach().double()

    def figures(self, arch: Arch, weights: Tensor, candidates: Candidates) -> dict[str, float]:
        return {"noisy/beta": arch["beta"].mean().item()}
