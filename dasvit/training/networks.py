"""Networks by name: a derived one, the plain ViT, or one of timm's, AutoFormer-B among them."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import dasvit.training.autoformer  # noqa: F401, registers its model with timm
from dasvit.run.files import first_line
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES
from dasvit.spaces.cell.network import DASViT, resolve_genotype
from dasvit.training.config import RetrainConfig

__all__ = ["VIT", "build_model", "model_on_meta"]

VIT = "vit"
"""The baseline's name: a plain ViT of the same depth, width and patches."""


def build_model(config: RetrainConfig, *, in_channels: int, num_classes: int) -> nn.Module:
    """The network that `config.model` names, freshly initialised.

    Raises:
        ValueError: no such model, or one that does not fit the width or the images.
    """
    size = {"img_size": config.data.image_size, "patch_size": config.patch_size}
    common = {"in_chans": in_channels, "num_classes": num_classes}
    if config.model == VIT:
        if config.dim % config.vit_heads:
            raise ValueError(
                f"vit_heads must divide dim, but got (vit_heads={config.vit_heads}, "
                f"dim={config.dim})"
            )
        return timm.models.VisionTransformer(
            **size,
            **common,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.vit_heads,
            proj_drop_rate=config.dropout,
            drop_path_rate=config.drop_path,
        )
    is_genotype = config.model in NAMED_GENOTYPES or config.model.endswith(".json")
    if is_genotype or Path(config.model).exists():
        genotype = resolve_genotype(config.model)
        if set(genotype.operations) == {"zero"}:
            raise ValueError(
                f"{config.model}: all edges are zero, so that nothing reaches the output; it "
                "cannot be trained"
            )
        try:
            return DASViT(
                genotype,
                **size,
                **common,
                embed_dim=config.dim,
                depth=config.depth,
                proj_drop_rate=config.dropout,
                drop_path_rate=config.drop_path,
            )
        except ValueError as error:
            raise ValueError(f"{config.model}: {error}") from None
    if not timm.is_model(config.model):
        raise ValueError(
            f"unknown model {config.model!r}; give {VIT!r}, a shipped genotype "
            f"({', '.join(NAMED_GENOTYPES)}), a genotype file, or the name of a timm model"
        )
    return _build_timm(config, in_channels, num_classes)


# What networks of other authors raise where a size does not fit them.
_MISFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def _build_timm(config: RetrainConfig, in_channels: int, num_classes: int) -> nn.Module:
    name, size = config.model, config.data.image_size
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": num_classes}
    if config.dropout:
        raise ValueError(
            f"dropout={config.dropout:g} is of {VIT!r} and of derived networks; {name!r} is built "
            "as timm defines it: give --dropout 0"
        )
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    try:
        try:
            model = timm.create_model(name, **options, img_size=size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            # Convolutional networks take any size.
            return timm.create_model(name, **options)
    except _MISFIT as error:
        if "drop_path_rate" in str(error):
            raise ValueError(
                f"model {name!r} has no stochastic depth; give --drop-path 0"
            ) from None
        raise ValueError(
            f"model {name!r} cannot be built for images of {size} × {size} with {in_channels} "
            f"channels ({first_line(error)}); try another --image-size"
        ) from None
    # timm's embeddings leave out what does not fill a patch.
    embedding = getattr(model, "patch_embed", None) or getattr(model, "pixel_embed", None)
    patch = getattr(embedding, "patch_size", None)
    padded = getattr(embedding, "dynamic_img_pad", False)
    if isinstance(patch, tuple) and any(size % side for side in patch) and not padded:
        raise ValueError(
            f"model {name!r} has patches of {' × '.join(map(str, patch))}, which do not divide "
            f"images of {size} × {size}; give --image-size a multiple"
        )
    return model


class _RealValues(TorchFunctionMode):
    """Ranges and constants have values, on the meta device too: some constructors read them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        real = {"device": "cpu"} if func in (torch.arange, torch.linspace, torch.tensor) else {}
        return func(*args, **(real | (kwargs or {})))


def model_on_meta(
    config: RetrainConfig, *, in_channels: int = 3, num_classes: int = 2
) -> nn.Module:
    """The network that `config.model` names, without memory, after a batch has passed through it.

    Raises:
        ValueError: what `build_model` refuses, images that are too small for its layers, or
            batches that are too small for its batch norms.
    """
    size = config.data.image_size
    where = f"images of {size} × {size}"
    with torch.device("meta"), torch.no_grad():
        try:
            model = build_model(config, in_channels=in_channels, num_classes=num_classes)
        except (ValueError, RuntimeError):  # a true refusal, which is raised again
            with _RealValues():
                model = build_model(config, in_channels=in_channels, num_classes=num_classes)
        model = model.to("meta")
        try:
            logits = model.eval()(torch.empty(2, in_channels, size, size))
        except _MISFIT as error:
            raise ValueError(
                f"model {config.model!r} does not run on {where} ({first_line(error)}); "
                "try a larger --image-size"
            ) from None
        images = min(config.batch_size, 2)
        try:
            model.train()(torch.empty(images, in_channels, size, size))
        except _MISFIT as error:
            raise ValueError(
                f"model {config.model!r} does not train on {where} in batches of "
                f"{config.batch_size} ({first_line(error)}); try a larger --batch-size"
            ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        raise ValueError(
            f"model {config.model!r} does not give one number a class; it is no classifier"
        )
    return model
