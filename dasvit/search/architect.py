"""The bilevel step (Algorithm 1, lines 11-14): alpha on validation data, weights on training data.

Every pass computes gradients for what it updates and nothing else, and keeps nothing for more:
the alpha passes without weight gradients run with the weights frozen, the weight pass on detached
operation weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dasvit.data.batch import Batch
from dasvit.run.seed import present_draws, same_draws
from dasvit.search.model import Noise, SearchModel

__all__ = ["ArchGradient", "arch_gradient", "weight_gradient"]


@dataclass(frozen=True, slots=True)
class ArchGradient:
    """The gradient of the upper-level objective and the losses seen on the way (all on the device).

    Attributes:
        gradients: one per architecture parameter, in the order of `arch_parameters`.
        val_loss: cross-entropy on the validation batch (at w' if ξ > 0).
        penalty: what the method added to it.
        logits: of the validation batch, (batch, classes), detached.
    """

    gradients: list[Tensor]
    val_loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    logits: Float[Tensor, "batch classes"]


def _gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """0 for what the loss does not depend on; that may be all, where a method draws `zero` on every
    edge."""
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in params]
    return list(torch.autograd.grad(loss, params, materialize_grads=True))


def weight_gradient(
    model: SearchModel, batch: Batch, noise: Noise
) -> tuple[list[Tensor], Float[Tensor, ""], Float[Tensor, "batch classes"]]:
    """∇_w L_train in the order of `weight_parameters`, the loss, and the logits (detached)."""
    images, labels = batch
    logits = model(images, model.train_weights(noise).detach())
    loss = F.cross_entropy(logits, labels)
    params = model.weight_parameters()
    return _gradients(loss, params), loss.detach(), logits.detach()


def arch_gradient(
    model: SearchModel, train_batch: Batch, val_batch: Batch, *, noise: Noise, xi: float
) -> ArchGradient:
    """∇_α (L_val + penalty)(w − ξ∇_w L_train(w, α), α) (Algorithm 1, line 13).

    ξ = 0 is the first-order gradient at w. ξ > 0 adds DARTS' second-order term
    `− ξ ∇²_{α,w} L_train · ∇_{w'} L_val`, the product by central differences with
    ε = 0.01 / ‖∇_{w'} L_val‖. Stochastic layers draw the same in every pass. The weights come
    back from a copy, bit for bit.

    Args:
        model: its weights and architecture parameters are as before on return.
        train_batch: images and labels of the weight half (used if ξ > 0).
        val_batch: images and labels of the alpha half.
        noise: the method's draw for this step.
        xi: ξ ≥ 0.
    """
    if xi == 0:
        with _frozen(model.weight_parameters()):
            return _gradient_at(model, val_batch, noise, [])[0]
    device = model.device
    draws = present_draws(device)

    params: list[Tensor] = [*model.weight_parameters()]
    saved = [p.detach().clone() for p in params]
    train_grads, _, _ = weight_gradient(model, train_batch, noise)
    try:
        with torch.no_grad():
            torch._foreach_add_(params, train_grads, alpha=-xi)  # w' = w − ξ∇_w L_train
        del train_grads
        with same_draws(draws, device):
            first, vector = _gradient_at(model, val_batch, noise, params)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vector)))
        epsilon = 0.01 / norm
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                torch._foreach_copy_(params, saved)
                torch._foreach_add_(params, torch._foreach_mul(vector, sign * epsilon))
            with same_draws(draws, device):
                sides.append(_train_gradient_of_arch(model, train_batch, noise))
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
    gradients = []
    for gradient, above, below in zip(first.gradients, *sides, strict=True):
        product = (above - below) / (2 * epsilon)
        # A zero vector has no direction: its product is zero, where 0.01 / 0 would give nan.
        gradients.append(gradient - xi * torch.where(norm > 0, product, torch.zeros_like(product)))
    return replace(first, gradients=gradients)


def _gradient_at(
    model: SearchModel, val_batch: Batch, noise: Noise, params: Sequence[Tensor]
) -> tuple[ArchGradient, list[Tensor]]:
    """∇_α (L_val + penalty) at the model's present weights, and ∇_w L_val for `params`."""
    images, labels = val_batch
    weights = model.weights(noise)
    logits = model(images, weights)
    val_loss = F.cross_entropy(logits, labels)
    penalty = model.penalty(weights)
    if penalty is None:
        penalty = torch.zeros_like(val_loss)
    # The penalty has no part in ∇_w: it depends on the architecture parameters only.
    arch = model.arch_parameters()
    found = _gradients(val_loss + penalty, [*arch, *params])
    result = ArchGradient(found[: len(arch)], val_loss.detach(), penalty.detach(), logits.detach())
    return result, found[len(arch) :]


def _train_gradient_of_arch(model: SearchModel, batch: Batch, noise: Noise) -> list[Tensor]:
    """∇_α L_train at the model's present weights, for the finite difference; no weight gradients.

    Always in fp32: the difference of two gradients at w ± εv is of the size of bfloat16's rounding.
    """
    images, labels = batch
    with _frozen(model.weight_parameters()), model.supernet.in_precision("fp32"):
        loss = F.cross_entropy(model(images, model.train_weights(noise)), labels)
        return _gradients(loss, model.arch_parameters())


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
