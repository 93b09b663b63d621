"""What watches alpha: the steadiness of its gradient, and RobustDARTS' early stop by the curvature
(Zela et al., 2020, arXiv:1909.09656)."""

import math
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from dasvit.data.batch import Batch
from dasvit.run.seed import derive_seed
from dasvit.search.model import SearchModel

__all__ = ["WINDOW", "Steadiness", "dominant_eigenvalue", "epoch_before_sharpness"]

WINDOW = 5
"""Epochs that the eigenvalue is averaged over, and that are looked back."""
LEAST_RATIO = 0.75
"""Of the mean eigenvalue `WINDOW` epochs ago to the present one; less of it is sharp."""

_STEP = 0.03
"""How far alpha is moved to either side for a difference of gradients."""


class Steadiness:
    """Whether alpha's gradient points somewhere, or is noise: over the n steps of an epoch
    `√(n · Σ mean² / Σ variance)`, summed over alpha's entries. Around 1 for gradients whose mean is
    0, about √n where they are all alike. Nothing waits for the device before `value`."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Those of a step, one per architecture parameter."""
        flat = torch.cat([gradient.flatten() for gradient in gradients]).double()
        if self._sum is None or self._squares is None:
            self._sum, self._squares = torch.zeros_like(flat), torch.zeros_like(flat)
        self._sum += flat
        self._squares += flat.square()
        self._count += 1

    def value(self) -> float:
        """nan with fewer than two steps, or without variance."""
        if self._sum is None or self._squares is None or self._count < 2:
            return math.nan
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean.square()) * self._count / (self._count - 1)
        signal, noise = (self._count * mean.square().sum()).item(), variance.sum().item()
        return math.sqrt(signal / noise) if noise > 0 else math.nan


def dominant_eigenvalue(model: SearchModel, batch: Batch) -> float:
    """The largest eigenvalue of the validation loss' Hessian with respect to the architecture
    parameters, on a batch.

    By Lanczos iterations on products with the Hessian, each a central difference of two gradients.
    The penalty of a method has no part in it. The model is as before on return.

    Args:
        model: of a stage; nothing is dropped in it meanwhile.
        batch: images and labels.

    Returns:
        nan where gradients are not finite, or the iterations do not converge.
    """
    training = model.training
    params = model.arch_parameters()
    sizes = [p.numel() for p in params]
    saved = [p.detach().clone() for p in params]
    weights = model.weight_parameters()
    frozen = [p.requires_grad for p in weights]

    def gradient() -> Float[Tensor, " size"]:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        grads = torch.autograd.grad(loss, params, materialize_grads=True)
        return torch.cat([grad.flatten() for grad in grads]).double().cpu()

    @torch.no_grad()
    def move(vector: Tensor) -> None:
        for param, start, part in zip(params, saved, vector.split(sizes), strict=True):
            param.copy_(start + part.view(start.shape).to(start))

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.asarray(vector, dtype=np.float64)).flatten()
        step = _STEP / direction.norm()
        sides = []
        for sign in (1, -1):
            move(sign * step * direction)
            sides.append(gradient())
        return ((sides[0] - sides[1]) / (2 * step)).numpy()

    try:
        model.eval()
        for p in weights:
            p.requires_grad_(False)
        with model.supernet.in_precision("fp32"):
            size = sum(sizes)
            if not gradient().isfinite().all():
                return math.nan
            # Always the same start, so that a run that is repeated finds the same.
            start = np.random.default_rng(derive_seed("Lanczos")).standard_normal(size)
            found = eigsh(
                _Symmetric(size, product),
                1,
                which="LA",
                ncv=min(size, 10),
                v0=start,
                tol=0.01,
                return_eigenvectors=False,
            )
    except ArpackError:
        return math.nan
    finally:
        model.train(training)
        move(torch.zeros(sum(sizes), dtype=torch.float64))
        for p, trained in zip(weights, frozen, strict=True):
            p.requires_grad_(trained)
    return float(found[0])


class _Symmetric(LinearOperator):
    """A symmetric matrix of which only products with vectors are known."""

    def __init__(self, size: int, product: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(np.float64, (size, size))
        self._product = product

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._product(x)


def epoch_before_sharpness(eigenvalues: Sequence[float]) -> int | None:
    """Where to go back to: the epoch, of those that the eigenvalues are of, before which alpha's
    minimum was not yet sharp; None to go on.

    The eigenvalue is averaged over the last `WINDOW` epochs. Once that mean was, `WINDOW` epochs
    ago, less than `LEAST_RATIO` of what it is now, the search goes back to there. Departure: the
    authors' code centres its windows, and goes back to the middle of the earlier one.
    """
    if len(eigenvalues) < 2 * WINDOW:
        return None
    now, before = mean(eigenvalues[-WINDOW:]), mean(eigenvalues[-2 * WINDOW : -WINDOW])
    return len(eigenvalues) - 1 - WINDOW if now > 0 and before / now < LEAST_RATIO else None
