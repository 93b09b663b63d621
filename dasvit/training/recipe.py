"""What a training is made of besides the network: optimiser, schedule, mixing of images, average.

All of them are timm's; the paper's recipe takes AdamW and the schedule alone.
"""

from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from dasvit.training.config import RetrainConfig
from dasvit.training.optim import norms_and_biases

__all__ = ["check_optimizer", "make_average", "make_mixing", "make_optimizer", "make_schedule"]

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


def make_optimizer(config: RetrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """`config.optimizer`, by default AdamW in PyTorch's fused form."""
    spared = {id(p) for p in ([] if config.decay_norms else norms_and_biases(model))}
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for p in model.parameters():
        if p.requires_grad:
            groups[id(p) in spared]["params"].append(p)
    options: dict[str, Any] = (
        {"fused": True} if config.optimizer in ("adamw", "adam", "sgd") else {}
    )
    return timm.optim.create_optimizer_v2(
        [group for group in groups if group["params"]],
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        **options,
    )


def make_schedule(
    config: RetrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> CosineLRScheduler:
    """Linear from `warmup_lr` to `lr`, then half a cosine to 0; `step_update(step)` sets the rate.

    Args:
        steps: an epoch.
    """
    warmup = config.warmup_epochs * steps
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, config.epochs * steps - warmup),
        warmup_t=warmup,
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


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


def make_average(config: RetrainConfig, model: nn.Module) -> ModelEmaV3 | None:
    """The exponential moving average of the weights; None where it is off."""
    return ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
