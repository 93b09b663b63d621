"""One step of the search: a stage's supernet, its two optimisers, and what a batch does to them."""

import torch
from jaxtyping import Float
from torch import Tensor

from dasvit.data.batch import Batch
from dasvit.methods.losses import fairness_loss, fairness_types, type_totals
from dasvit.report.events import EdgeOps
from dasvit.run.seed import present_draws, same_draws
from dasvit.search.architect import AlphaGradient, alpha_gradient, weight_gradient
from dasvit.search.config import SearchConfig
from dasvit.search.cuda_graph import CudaGraphs
from dasvit.spaces.cell.supernet import SuperNet
from dasvit.training.recipe import clip_gradients, make_optimizer, norms_and_biases

__all__ = ["BilevelStep", "build_supernet"]

Found = tuple[Float[Tensor, ""], Float[Tensor, "batch classes"], AlphaGradient | None]


def build_supernet(
    config: SearchConfig, edge_ops: EdgeOps, *, num_layers: int, in_channels: int, num_classes: int
) -> SuperNet:
    """The supernet of a stage, freshly initialised, on the default device."""
    return SuperNet(
        edge_ops,
        num_layers=num_layers,
        dim=config.dim,
        num_nodes=config.num_nodes,
        image_size=config.data.image_size,
        patch_size=config.patch_size,
        in_channels=in_channels,
        num_classes=num_classes,
        dropout=config.dropout,
        token_ratio=config.token_ratio,
        token_where=config.token_where,
        alpha_init_std=config.alpha_init_std,
        fused=config.fused,
        recompute=config.recompute,
        precision=config.precision,
    )


class BilevelStep:
    """Algorithm 1, lines 11-14, on one stage's supernet.

    Args:
        config: the search.
        model: its supernet, on its device.
    """

    def __init__(self, config: SearchConfig, model: SuperNet) -> None:
        self.config, self.model = config, model
        self.device = model.alpha.device
        self.types = fairness_types(config.operations)
        self.weight_optimizer = make_optimizer(
            model.weight_parameters(),
            lr=config.weight_lr,
            weight_decay=config.weight_decay,
            spared=[] if config.decay_norms else norms_and_biases(model),
            capturable=config.cuda_graph,
        )
        self.alpha_optimizer = torch.optim.Adam(
            model.alpha_parameters(),
            lr=config.alpha_lr,
            betas=config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
            fused=True if config.cuda_graph else None,
            capturable=config.cuda_graph,
        )
        on_gpu = self.device.type == "cuda"  # a plan has none
        self._graphs = CudaGraphs[Found](self.device) if config.cuda_graph and on_gpu else None
        # A graph reads the learning rate from the device; fused kernels take it as float32.
        lr = torch.empty((), dtype=torch.float32, device=self.device)
        self._lr = lr if config.cuda_graph else None

    def __call__(self, train_batch: Batch, val_batch: Batch | None, *, weight_lr: float) -> Found:
        """Update alpha, then the weights; stochastic layers draw the same in every pass.

        Args:
            train_batch: images and labels of the weight half.
            val_batch: of the alpha half; None leaves alpha as it is.
            weight_lr: learning rate of the weights in this step.

        Returns:
            L_train and its logits (batch, classes) before the weights' update, detached, and what
            the alpha pass found. Nothing waits for the device. With `cuda_graph` the next step
            overwrites them.
        """
        if self._lr is not None:
            self._lr.fill_(weight_lr)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = weight_lr if self._lr is None else self._lr
        batches = *train_batch, *(val_batch or ())
        if self._graphs is None:
            return self._update(*batches)
        return self._graphs.call(self._update, *batches)

    def _update(self, *tensors: Tensor) -> Found:
        model, config = self.model, self.config
        images, labels, *val = tensors
        train_batch = images, labels
        val_batch = (val[0], val[1]) if val else None
        draws = present_draws(self.device)
        found = None
        if val_batch is not None:
            found = alpha_gradient(
                model, train_batch, val_batch, fairness=self.fairness, xi=config.xi
            )
            model.alpha.grad = found.gradient
            self.alpha_optimizer.step()
        with same_draws(draws, self.device):
            grads, loss, logits = weight_gradient(model, train_batch)
        clip_gradients(grads, config.grad_clip)
        for param, grad in zip(model.weight_parameters(), grads, strict=True):
            param.grad = grad
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad(set_to_none=True)
        return loss, logits, found

    def fairness(self, weights: Float[Tensor, "edges ops"]) -> Float[Tensor, ""]:
        """L_fair (Eq. 19) of operation weights."""
        config = self.config
        return fairness_loss(
            weights,
            self.model.edge_ops,
            self.types,
            skip_weight=config.skip_weight,
            type_weight=config.type_weight,
            gamma_min=config.gamma_min,
            gamma_max=config.gamma_max,
            zeta1=config.zeta1,
            zeta2=config.zeta2,
        )

    def type_totals(self, weights: Float[Tensor, "edges ops"]) -> dict[str, float]:
        """Each operation type's mean total weight (Eq. 17)."""
        totals = type_totals(weights, self.model.edge_ops, self.types)
        return {kind: total.item() for kind, total in totals.items()}
