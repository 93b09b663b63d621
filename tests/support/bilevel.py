"""The bilevel step (Algorithm 1, lines 11-14) written out, for the tests alone.

Gradients by differentiating through a step or by DARTS' formula, optimisers by their equations. The
weights of the candidates are softmax(alpha); what a method adds to the loss is a function of them.
"""

import copy
import math
from collections.abc import Callable

import torch
from support import reference
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from dasvit.data.batch import Batch
from dasvit.search.config import SearchConfig
from dasvit.search.model import SearchModel

ALPHA = "arch.alpha"
Penalty = Callable[[Tensor], Tensor]


def fairness(model: SearchModel) -> Penalty:
    """Eq. 19 by its literal version, with the settings of a model's method."""
    names = ("skip_weight", "type_weight", "gamma_min", "gamma_max", "zeta1", "zeta2")
    settings = {name: getattr(model.method, name) for name in names}
    return lambda weights: reference.fairness(
        weights, model.candidates.edge_ops, ("msa", "mlp"), **settings
    )


def loss(model: SearchModel, weights: dict[str, Tensor], alpha: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy written out."""
    logits = functional_call(model, {**weights, ALPHA: alpha}, (batch[0],))
    chosen = logits.gather(1, batch[1][:, None])[:, 0]
    return (logits.exp().sum(1).log() - chosen).mean()


def _values(model: SearchModel) -> tuple[dict[str, Tensor], Tensor]:
    """The weights by name, and alpha."""
    values = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    return values, values.pop(ALPHA)


def hypergradient(
    model: SearchModel, train_batch: Batch, val_batch: Batch, penalty: Penalty, xi: float
) -> Tensor:
    """∇_α (L_val + penalty)(w − ξ∇_w L_train(w, α), α) by differentiating through the step."""
    weights, alpha = _values(model)
    with sdpa_kernel(SDPBackend.MATH):
        train_loss = loss(model, weights, alpha, train_batch)
        grads = torch.autograd.grad(train_loss, list(weights.values()), create_graph=True)
        moved = {
            name: w - xi * g for (name, w), g in zip(weights.items(), grads, strict=True)
        }  # w' as a function of alpha
        objective = loss(model, moved, alpha, val_batch) + penalty(reference.softmax(alpha))
        return torch.autograd.grad(objective, alpha)[0]


def second_order(
    model: SearchModel,
    train_batch: Batch,
    val_batch: Batch,
    penalty: Penalty,
    xi: float,
    *,
    before_pass: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """DARTS' formula term by term: `∇_α(L_val + penalty)(w')` and
    `(∇_α L_train(w⁺) − ∇_α L_train(w⁻)) / 2ε`, ε = 0.01 / ‖∇_{w'}L_val‖.

    Args:
        before_pass: called ahead of every forward pass.
    """
    weights, alpha = _values(model)
    before_pass()
    grads = torch.autograd.grad(loss(model, weights, alpha, train_batch), list(weights.values()))
    moved = {
        name: (w - xi * g).detach().requires_grad_()
        for (name, w), g in zip(weights.items(), grads, strict=True)
    }
    before_pass()
    objective = loss(model, moved, alpha, val_batch) + penalty(reference.softmax(alpha))
    direct, *vector = torch.autograd.grad(objective, [alpha, *moved.values()])
    epsilon = 0.01 / math.sqrt(sum(float((v**2).sum()) for v in vector))
    sides = []
    for sign in (1, -1):
        shifted = {
            name: (w + sign * epsilon * v).detach()
            for (name, w), v in zip(weights.items(), vector, strict=True)
        }
        before_pass()
        sides.append(torch.autograd.grad(loss(model, shifted, alpha, train_batch), alpha)[0])
    return direct, (sides[0] - sides[1]) / (2 * epsilon)


class LiteralSteps:
    """Steps on a copy of a model: alpha by Adam with L2 decay, then the weights at the new alpha by
    AdamW."""

    def __init__(self, config: SearchConfig, model: SearchModel) -> None:
        self.config, self.model = config, copy.deepcopy(model)
        self._moments: dict[str, tuple[int, Tensor, Tensor]] = {}

    def __call__(self, train: Batch, val: Batch | None, *, weight_lr: float) -> None:
        config, method, model = self.config, self.config.method, self.model
        params = dict(model.named_parameters())
        if val is not None:
            penalty = fairness(model)
            if method.xi > 0:
                direct, product = second_order(model, train, val, penalty, method.xi)
                gradient = direct - method.xi * product
            else:
                gradient = hypergradient(model, train, val, penalty, 0.0)
            gradient = gradient + method.alpha_weight_decay * params[ALPHA].detach()
            self._adam(ALPHA, params[ALPHA], gradient, method.alpha_lr, method.alpha_betas)
        weights, alpha = _values(model)
        train_loss = loss(model, weights, alpha, train)
        grads = torch.autograd.grad(train_loss, list(weights.values()), materialize_grads=True)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        scale = min(1.0, config.grad_clip / (norm + 1e-6)) if config.grad_clip else 1.0
        for name, gradient in zip(weights, grads, strict=True):
            vector = "bias" in name or "norm" in name or name.endswith(("cls_token", "positions"))
            if config.decay_norms or not vector:
                with torch.no_grad():
                    params[name] *= 1 - weight_lr * config.weight_decay
            self._adam(name, params[name], scale * gradient, weight_lr, (0.9, 0.999))

    @torch.no_grad()
    def _adam(
        self, name: str, param: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float]
    ) -> None:
        zeros = torch.zeros_like(param)
        count, first, second = self._moments.get(name, (0, zeros, zeros))
        count += 1
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        self._moments[name] = count, first, second
        unbiased = first / (1 - betas[0] ** count), second / (1 - betas[1] ** count)
        param -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
