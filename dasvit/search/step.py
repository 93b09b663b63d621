"""One step of the search: the two optimisers of a stage, and what a batch does to its model."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dasvit.data.batch import Batch
from dasvit.run.seed import present_draws, same_draws
from dasvit.search.architect import ArchGradient, arch_gradient, weight_gradient
from dasvit.search.config import SearchConfig
from dasvit.search.cuda_graph import CudaGraphs
from dasvit.search.model import SearchModel
from dasvit.training.recipe import make_optimizer, norms_and_biases, take_step

__all__ = ["BilevelStep"]

Found = tuple[Float[Tensor, ""], Float[Tensor, "batch classes"], ArchGradient | None]


class BilevelStep:
    """Algorithm 1, lines 11-14, on one stage's model.

    Args:
        config: the search.
        model: on its device.
    """

    def __init__(self, config: SearchConfig, model: SearchModel) -> None:
        self.config, self.model = config, model
        self.device, method = model.device, config.method
        self.weight_optimizer = make_optimizer(
            model.weight_parameters(),
            lr=config.weight_lr,
            weight_decay=config.weight_decay,
            spared=[] if config.decay_norms else norms_and_biases(model.supernet),
            capturable=config.cuda_graph,
        )
        self.arch_optimizer = make_optimizer(
            model.arch_parameters(),
            "adam",
            lr=method.alpha_lr,
            betas=method.alpha_betas,
            weight_decay=method.alpha_weight_decay,
            fused=config.cuda_graph or None,  # which rounds in another way
            capturable=config.cuda_graph,
        )
        on_gpu = self.device.type == "cuda"  # a plan has none
        self._graphs = CudaGraphs[Found](self.device) if config.cuda_graph and on_gpu else None
        # A graph reads the learning rate from the device; fused kernels take it as float32.
        lr = torch.empty((), dtype=torch.float32, device=self.device)
        self._lr = lr if config.cuda_graph else None

    def __call__(
        self, train_batch: Batch, val_batch: Batch | None, *, weight_lr: float, t: float = 0.0
    ) -> Found:
        """Update alpha, then the weights; stochastic layers and the method's noise draw the same
        in every pass.

        Args:
            train_batch: images and labels of the weight half.
            val_batch: of the alpha half; None leaves alpha as it is.
            weight_lr: learning rate of the weights in this step.
            t: share of the search that is done.

        Returns:
            L_train and its logits (batch, classes) before the weights' update, detached, and what
            the alpha pass found. Nothing waits for the device. With `cuda_graph` the next step
            overwrites them.
        """
        self.model.t.fill_(t)
        if self._lr is not None:
            self._lr.fill_(weight_lr)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = weight_lr if self._lr is None else self._lr
        noise = self.model.noise()
        batches = *train_batch, *(val_batch or ())
        update = self._update_with(tuple(noise), len(batches))
        if self._graphs is None:
            return update(*batches, *noise.values())
        return self._graphs.call(update, *batches, *noise.values())

    def _update_with(self, names: tuple[str, ...], num_batches: int) -> Callable[..., Found]:
        """The update as a function of tensors alone: batches, then the method's noise."""

        def update(*tensors: Tensor) -> Found:
            noise = dict(zip(names, tensors[num_batches:], strict=True))
            return self._update(tensors[:num_batches], noise)

        return update

    def _update(self, batches: tuple[Tensor, ...], noise: dict[str, Tensor]) -> Found:
        model, config = self.model, self.config
        images, labels, *val = batches
        train_batch = images, labels
        draws = present_draws(self.device)
        found = None
        if val:
            found = arch_gradient(
                model, train_batch, (val[0], val[1]), noise=noise, xi=config.method.xi
            )
            for param, grad in zip(model.arch_parameters(), found.gradients, strict=True):
                param.grad = grad
            self.arch_optimizer.step()
        with same_draws(draws, self.device):
            grads, loss, logits = weight_gradient(model, train_batch, noise)
        take_step(self.weight_optimizer, model.weight_parameters(), grads, config.grad_clip)
        return loss, logits, found
