"""The bilevel step (Algorithm 1, lines 11-14): alpha on validation data, weights on training data.

Every pass computes gradients for what it updates and nothing else, and keeps nothing for more:
the alpha passes without weight gradients run with the weights frozen, the weight pass on detached
operation weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dasvit.data.batch import Batch
from dasvit.run.seed import present_draws, same_draws
from dasvit.spaces.cell.supernet import SuperNet

__all__ = ["AlphaGradient", "alpha_gradient", "weight_gradient"]

Fairness = Callable[[Float[Tensor, "edges ops"]], Float[Tensor, ""]]


@dataclass(frozen=True, slots=True)
class AlphaGradient:
    """∇_α of the upper-level objective and the losses seen on the way (all on the device).

    Attributes:
        gradient: (edges, ops).
        val_loss: cross-entropy on the validation batch (at w' if ξ > 0).
        fair_loss: L_fair (Eq. 19).
        logits: of the validation batch, (batch, classes), detached.
    """

    gradient: Float[Tensor, "edges ops"]
    val_loss: Float[Tensor, ""]
    fair_loss: Float[Tensor, ""]
    logits: Float[Tensor, "batch classes"]


def _filled(grads: tuple[Tensor | None, ...], params: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)]


def weight_gradient(
    model: SuperNet, batch: Batch
) -> tuple[list[Tensor], Float[Tensor, ""], Float[Tensor, "batch classes"]]:
    """∇_w L_train in the order of `weight_parameters`, the loss, and the logits (detached)."""
    images, labels = batch
    logits = model(images, model.operation_weights().detach())
    loss = F.cross_entropy(logits, labels)
    params = model.weight_parameters()
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    return _filled(grads, params), loss.detach(), logits.detach()


def alpha_gradient(
    model: SuperNet,
    train_batch: Batch,
    val_batch: Batch,
    *,
    fairness: Fairness,
    xi: float,
) -> AlphaGradient:
    """∇_α (L_val + L_fair)(w − ξ∇_w L_train(w, α), α) (Algorithm 1, line 13).

    ξ = 0 is the first-order gradient at w. ξ > 0 adds DARTS' second-order term
    `− ξ ∇²_{α,w} L_train · ∇_{w'} L_val`, the product by central differences with
    ε = 0.01 / ‖∇_{w'} L_val‖. Stochastic layers draw the same in every pass. The weights come
    back from a copy, bit for bit.

    Args:
        model: the supernet; its weights and alphas are as before on return.
        train_batch: images and labels of the weight half (used if ξ > 0).
        val_batch: images and labels of the alpha half.
        fairness: L_fair as a function of softmax(alpha).
        xi: ξ ≥ 0.
    """
    device = model.alpha.device
    if xi == 0:
        with _frozen(model.weight_parameters()):
            return _gradient_at(model, val_batch, fairness, [])[0]
    draws = present_draws(device)

    params: list[Tensor] = [*model.weight_parameters()]
    saved = [p.detach().clone() for p in params]
    train_grads, _, _ = weight_gradient(model, train_batch)
    try:
        with torch.no_grad():
            torch._foreach_add_(params, train_grads, alpha=-xi)  # w' = w − ξ∇_w L_train
        del train_grads
        with same_draws(draws, device):
            first, vector = _gradient_at(model, val_batch, fairness, params)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vector)))
        epsilon = 0.01 / norm
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                torch._foreach_copy_(params, saved)
                torch._foreach_add_(params, torch._foreach_mul(vector, sign * epsilon))
            with same_draws(draws, device):
                sides.append(_train_gradient_of_alpha(model, train_batch))
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
    product = (sides[0] - sides[1]) / (2 * epsilon)
    # A zero vector has no direction: its product is zero, where 0.01 / 0 would give nan.
    product = torch.where(norm > 0, product, torch.zeros_like(product))
    return AlphaGradient(
        first.gradient - xi * product, first.val_loss, first.fair_loss, first.logits
    )


def _gradient_at(
    model: SuperNet, val_batch: Batch, fairness: Fairness, params: Sequence[Tensor]
) -> tuple[AlphaGradient, list[Tensor]]:
    """∇_α (L_val + L_fair) at the model's present weights, and ∇_w L_val for `params`."""
    images, labels = val_batch
    weights = model.operation_weights()
    logits = model(images, weights)
    val_loss = F.cross_entropy(logits, labels)
    fair_loss = fairness(weights)
    # L_fair has no part in ∇_w: it depends on alpha only.
    grads = torch.autograd.grad(val_loss + fair_loss, [model.alpha, *params], allow_unused=True)
    alpha_grad, *weight_grads = _filled(grads, [model.alpha, *params])
    result = AlphaGradient(alpha_grad, val_loss.detach(), fair_loss.detach(), logits.detach())
    return result, weight_grads


def _train_gradient_of_alpha(model: SuperNet, batch: Batch) -> Float[Tensor, "edges ops"]:
    """∇_α L_train at the model's present weights, for the finite difference; no weight gradients.

    Always in fp32: the difference of two gradients at w ± εv is of the size of bfloat16's rounding.
    """
    images, labels = batch
    with _frozen(model.weight_parameters()), model.in_precision("fp32"):
        loss = F.cross_entropy(model(images), labels)
        return torch.autograd.grad(loss, model.alpha)[0]


@contextmanager
def _frozen(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Nothing is recorded for the gradients of `params` inside."""
    trained = [p for p in params if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
