"""Steps of a search (Algorithm 1, lines 11-14) written out, for the tests alone."""

import copy
import math

import torch
from support.hypergradient import hypergradient, second_order
from torch import Tensor, nn

from dasvit.data.batch import Batch
from dasvit.search.config import SearchConfig
from dasvit.search.model import SearchModel


class LiteralSteps:
    """Steps on a copy of a model: architecture parameters by Adam with L2 decay, then the weights
    by AdamW, where the parameters now are. Without noise."""

    def __init__(self, config: SearchConfig, model: SearchModel) -> None:
        self.config, self.model = config, copy.deepcopy(model)
        self._moments: dict[Tensor, tuple[int, Tensor, Tensor]] = {}

    def __call__(self, train: Batch, val: Batch | None, *, weight_lr: float) -> None:
        method = self.config.method
        if val is not None:
            if method.xi > 0:
                direct, product = second_order(self.model, train, val, method.xi, {})
                grads = [d - method.xi * p for d, p in zip(direct, product, strict=True)]
            else:
                grads = hypergradient(self.model, train, val, 0.0, {})
            for p, grad in zip(self.model.arch_parameters(), grads, strict=True):
                decayed = grad + method.alpha_weight_decay * p.detach()
                self._adam(p, decayed, method.alpha_lr, method.alpha_betas)
        self._update_weights(train, weight_lr)

    def _update_weights(self, train: Batch, lr: float) -> None:
        config = self.config
        loss = nn.functional.cross_entropy(self.model(train[0]), train[1])
        named = dict(self.model.supernet.named_parameters())
        grads = torch.autograd.grad(loss, [*named.values()], materialize_grads=True)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        scale = min(1.0, config.grad_clip / (norm + 1e-6)) if config.grad_clip else 1.0
        for (name, p), grad in zip(named.items(), grads, strict=True):
            vector = "bias" in name or "norm" in name or name.endswith(("cls_token", "positions"))
            if config.decay_norms or not vector:
                p.data *= 1 - lr * config.weight_decay
            self._adam(p, scale * grad, lr, (0.9, 0.999))

    def _adam(self, p: Tensor, grad: Tensor, lr: float, betas: tuple[float, float]) -> None:
        zeros = torch.zeros_like(p.data)
        count, first, second = self._moments.get(p, (0, zeros, zeros))
        count += 1
        first = betas[0] * first + (1 - betas[0]) * grad
        second = betas[1] * second + (1 - betas[1]) * grad**2
        self._moments[p] = count, first, second
        unbiased = first / (1 - betas[0] ** count), second / (1 - betas[1] ** count)
        p.data -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
