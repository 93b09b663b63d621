"""The gradient of a bilevel step for any method (Algorithm 1, line 13), written out: by
differentiating through the step, or by DARTS' formula term by term. For the tests alone."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from dasvit.data.batch import Batch
from dasvit.search.model import Noise, SearchModel


def _loss(model: SearchModel, weights: dict[str, Tensor], rows: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy written out, with the supernet's weights and those of the candidates given."""
    logits = functional_call(model.supernet, weights, (batch[0], rows))
    chosen = logits.gather(1, batch[1][:, None])[:, 0]
    return (logits.exp().sum(1).log() - chosen).mean()


def _leaves(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in named}


def _objective(
    model: SearchModel,
    weights: dict[str, Tensor],
    arch: dict[str, Tensor],
    noise: Noise,
    batch: Batch,
) -> Tensor:
    """L_val and what the method adds."""
    rows = model.with_skip(model.method.weights(arch, noise, model.t))
    loss = _loss(model, weights, rows, batch)
    penalty = model.method.penalty(arch, rows, model.candidates, model.t)
    return loss if penalty is None else loss + penalty


def hypergradient(
    model: SearchModel, train_batch: Batch, val_batch: Batch, xi: float, noise: Noise
) -> list[Tensor]:
    """∇_α (L_val + penalty)(w − ξ∇_w L_train(w, α), α) by differentiating through the step, one
    per architecture parameter."""
    weights, arch = _leaves(model.supernet.named_parameters()), _leaves(model.arch.items())
    with sdpa_kernel(SDPBackend.MATH):
        rows = model.with_skip(model.method.train_weights(arch, noise, model.t))
        train_loss = _loss(model, weights, rows, train_batch)
        grads = torch.autograd.grad(
            train_loss, list(weights.values()), create_graph=True, materialize_grads=True
        )
        moved = {
            name: w - xi * g for (name, w), g in zip(weights.items(), grads, strict=True)
        }  # w' as a function of alpha
        return list(
            torch.autograd.grad(
                _objective(model, moved, arch, noise, val_batch), list(arch.values())
            )
        )


def second_order(
    model: SearchModel,
    train_batch: Batch,
    val_batch: Batch,
    xi: float,
    noise: Noise,
) -> tuple[list[Tensor], list[Tensor]]:
    """DARTS' formula term by term: `∇_α(L_val + penalty)(w')` and
    `(∇_α L_train(w⁺) − ∇_α L_train(w⁻)) / 2ε`, ε = 0.01 / ‖∇_{w'}L_val‖; one of each per
    architecture parameter."""
    weights, arch = _leaves(model.supernet.named_parameters()), _leaves(model.arch.items())

    def train_gradient(at: dict[str, Tensor], of: dict[str, Tensor]) -> tuple[Tensor, ...]:
        rows = model.with_skip(model.method.train_weights(arch, noise, model.t))
        loss = _loss(model, at, rows, train_batch)
        return torch.autograd.grad(loss, list(of.values()), materialize_grads=True)

    moved = {
        name: (w - xi * g).detach().requires_grad_()
        for (name, w), g in zip(weights.items(), train_gradient(weights, weights), strict=True)
    }
    objective = _objective(model, moved, arch, noise, val_batch)
    inputs = [*arch.values(), *moved.values()]
    found = torch.autograd.grad(objective, inputs, materialize_grads=True)
    direct, vector = list(found[: len(arch)]), found[len(arch) :]
    epsilon = 0.01 / math.sqrt(sum(float((v**2).sum()) for v in vector))
    above, below = (
        train_gradient(
            {
                name: (w + sign * epsilon * v).detach()
                for (name, w), v in zip(weights.items(), vector, strict=True)
            },
            arch,
        )
        for sign in (1, -1)
    )
    return direct, [(a - b) / (2 * epsilon) for a, b in zip(above, below, strict=True)]
