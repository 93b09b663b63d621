"""What a training is made of besides the network: optimiser, schedule, mixing of images, average.

All of them are timm's. Search and retraining share the optimiser, the schedule and the clipping.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import timm.optim
import torch
from jaxtyping import Float
from timm.data.mixup import Mixup, mixup_target
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from dasvit.data.splits import Split
from dasvit.training.config import RetrainConfig

__all__ = [
    "all_finite",
    "check_optimizer",
    "clip_gradients",
    "make_average",
    "make_class_weights",
    "make_mixing",
    "make_optimizer",
    "make_schedule",
    "norms_and_biases",
    "take_step",
]

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def check_optimizer(name: str) -> None:
    """Whether timm has an optimiser that runs on every device and takes plain gradients.

    Raises:
        ValueError: it has not.
    """
    known = [str(known) for known in timm.optim.list_optimizers()]
    plain = [known for known in known if _is_plain(known)]
    if name not in plain:
        why = "cannot be used here" if name in known else "is unknown"
        raise ValueError(f"optimizer {name!r} {why}; of timm's these can: {', '.join(plain)}")


def _is_plain(name: str) -> bool:
    # bitsandbytes' and APEX' need a GPU and a package of their own.
    foreign = name.startswith(("bnb", "fused"))
    return not foreign and not timm.optim.get_optimizer_info(name).second_order


def make_optimizer(
    params: Iterable[nn.Parameter],
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float,
    spared: Iterable[nn.Parameter] = (),
    **options: Any,
) -> torch.optim.Optimizer:
    """One of timm's optimisers by its name; PyTorch's own in their fused form by default.

    Args:
        spared: those of `params` that the weight decay leaves alone.
        options: further arguments of the optimiser, `capturable` say.
    """
    # Paper gap: whether norms and biases decay, see docs/fidelity.md.
    no_decay = {id(p) for p in spared}
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for p in params:
        groups[id(p) in no_decay]["params"].append(p)
    if name in ("adamw", "adam", "sgd"):
        options.setdefault("fused", True)
    return timm.optim.create_optimizer_v2(
        [group for group in groups if group["params"]],
        opt=name,
        lr=lr,
        weight_decay=weight_decay,
        **options,
    )


def norms_and_biases(model: nn.Module) -> list[nn.Parameter]:
    """What many recipes spare from weight decay: norms, biases, CLS and positions; all but the
    weights of linear layers and convolutions."""
    return [p for name, p in model.named_parameters() if p.dim() not in (2, 4) or "bias" in name]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
) -> CosineLRScheduler:
    """The learning rate of each step: linear from `warmup_lr` to the optimiser's, then half a
    cosine towards 0.

    `step_update(step)`, with the 0-based step, puts it into `optimizer.param_groups`; nothing else
    is remembered from step to step.

    Args:
        steps: of the whole training, warm-up included.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup_steps),
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def clip_gradients(grads: list[Tensor], max_norm: float) -> None:
    """Scale gradients in place so that their joint norm is at most `max_norm`; 0 does nothing.

    Stays on the device: nothing waits for the value of the norm.
    """
    if max_norm > 0:
        norm = nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def take_step(
    optimizer: torch.optim.Optimizer,
    params: Sequence[nn.Parameter],
    grads: list[Tensor],
    max_norm: float,
) -> None:
    """Update `params` by their gradients, clipped (`clip_gradients`); none are kept."""
    clip_gradients(grads, max_norm)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def all_finite(params: list[nn.Parameter]) -> bool:
    """Whether no parameter holds inf or nan. Waits for the device: once per epoch."""
    norms = torch._foreach_norm([p.detach() for p in params])
    return bool(torch.stack(list(norms)).isfinite().all())


def make_mixing(config: RetrainConfig, num_classes: int) -> Mixing | None:
    """Mixup and CutMix by turns, of images with the batch in reverse; None where both are off.

    It draws from NumPy's global generator. Targets come out as shares of the classes, smoothed. Of
    an odd number of images the last stays as it is.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    mix = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )

    def mixing(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(images) - len(images) % 2
        targets = mixup_target(labels, num_classes, smoothing=config.label_smoothing)
        if even == 0:
            return images, targets
        images = images.clone()
        mixed, shares = mix(images[:even], labels[:even])  # it writes into the images
        return torch.cat([mixed, images[even:]]), torch.cat([shares, targets[even:]])

    return mixing


def make_class_weights(
    config: RetrainConfig, train: Split, num_classes: int, device: torch.device
) -> Float[Tensor, " classes"] | None:
    """What an image of each class counts in the loss: N / (classes · images of the class), so that
    the mean over the images is 1; None where all count 1."""
    if config.class_weights == "none":
        return None
    counts = train.targets.bincount(minlength=num_classes)
    return (len(train) / (num_classes * counts.clamp(min=1))).to(device)


def make_average(config: RetrainConfig, model: nn.Module) -> ModelEmaV3 | None:
    """The exponential moving average of the weights; None where it is off."""
    return ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
