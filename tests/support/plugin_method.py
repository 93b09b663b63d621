"""Two methods of a user's own, registered from outside the package: `decided`, as CONTRIBUTING.md
has it, and `shaken`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from dasvit.methods import DARTS, LogUniform, Uniform, register_method
from dasvit.run.settings import Range


@register_method
@dataclass(frozen=True, kw_only=True)
class Decided(DARTS):
    name: ClassVar[str] = "decided"
    title: ClassVar[str] = "decided DARTS"

    decision: Annotated[float, Range("[0, inf)")] = 1.0
    """Weight of the penalty at the end of the search."""

    def penalty(self, arch, weights, candidates, t):
        return t * self.decision * (1 - weights.square().sum(dim=-1)).mean()

    def outer_space(self, *, weight_lr, fixed=()):
        drawn = super().outer_space(weight_lr=weight_lr, fixed=fixed)
        return drawn | {"decision": LogUniform(0.1, 10.0)}


@register_method
@dataclass(frozen=True, kw_only=True)
class ShakenDARTS(DARTS):
    """After SDARTS-RS (arXiv:2002.05283): the network is trained under alphas that are shaken. A
    second architecture parameter, an offset per candidate, is there to be tested."""

    name: ClassVar[str] = "shaken"
    title: ClassVar[str] = "shaken DARTS"
    staged: ClassVar[bool] = True

    epsilon: Annotated[float, Range("[0, inf)")] = 0.3
    """The furthest that an alpha is shaken, at the end of the search."""

    def parameters(self, candidates):
        found = super().parameters(candidates)
        return found | {"offset": torch.zeros_like(found["alpha"])}

    def noise(self, arch, candidates, t):
        return {"shake": t * self.epsilon * (2 * torch.rand_like(arch["alpha"]) - 1)}

    def weights(self, arch, noise, t):
        return (arch["alpha"] + arch["offset"]).softmax(dim=-1)

    def train_weights(self, arch, noise, t):
        return (arch["alpha"] + arch["offset"] + noise["shake"]).softmax(dim=-1)

    def scores(self, arch):
        return (arch["alpha"] + arch["offset"]).detach().double().softmax(dim=-1)

    def figures(self, arch, weights, candidates, t):
        return {"offset/largest": arch["offset"].abs().max().item()}

    def outer_space(self, *, weight_lr, fixed=()):
        return super().outer_space(weight_lr=weight_lr) | {"epsilon": Uniform(0.0, 0.5)}
