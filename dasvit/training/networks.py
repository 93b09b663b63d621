"""Networks by name: a derived one, the plain ViT, or one of timm's, AutoFormer-B among them.

Each is a network of timm's register: a name and arguments, with which anyone can build it again.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import dasvit.training.autoformer  # noqa: F401, registers its model with timm
from dasvit.run.files import first_line
from dasvit.spaces.cell.derived_network import resolve_genotype
from dasvit.spaces.cell.genotype import NAMED_GENOTYPES, Genotype
from dasvit.spaces.cell.operations import is_blind
from dasvit.training.config import RetrainConfig

__all__ = ["VIT", "architecture", "build_network", "check_sees", "model_on_meta"]

VIT = "vit"
"""The baseline's name: a plain ViT of the same depth, width and patches."""
DERIVED = "dasvit"
"""timm's name of the derived network."""

# What networks of other authors raise where a size does not fit them.
_MISFIT = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


def check_sees(genotype: Genotype, where: str, *, pool: str = "token") -> None:
    """Refuse an encoder that gives every image the same answer.

    Args:
        where: it comes from, for the message.
        pool: timm's name of what the head reads.

    Raises:
        ValueError: an unknown operation; or none mixes tokens, and the head reads CLS alone.
    """
    try:
        blind = is_blind(genotype.operations)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if blind and pool == "token":
        raise ValueError(
            f"{where}: none of its operations ({', '.join(dict.fromkeys(genotype.operations))}) "
            "mixes tokens, so that the CLS token, which the head reads, does not see the image"
        )


def architecture(
    config: RetrainConfig, *, in_channels: int, num_classes: int
) -> tuple[str, dict[str, Any]]:
    """timm's name of the network that `config.model` names, and the arguments of
    `timm.create_model` that make it, JSON-ready. Rates of dropout, for training alone, are not
    among them.

    Raises:
        ValueError: no such model, or settings that are not for it.
    """
    args: dict[str, Any] = {"in_chans": in_channels, "num_classes": num_classes}
    sized = args | {"img_size": config.data.image_size}
    scaled = sized | {
        "patch_size": config.patch_size,
        "embed_dim": config.dim,
        "depth": config.depth,
    }
    name = config.model
    if name == VIT:
        if config.dim % config.vit_heads:
            raise ValueError(
                f"vit_heads must divide dim, but got (vit_heads={config.vit_heads}, "
                f"dim={config.dim})"
            )
        return "vit_base_patch16_224", scaled | {"num_heads": config.vit_heads}
    if name in NAMED_GENOTYPES or name.endswith(".json") or Path(name).exists():
        genotype = resolve_genotype(name)
        if set(genotype.operations) == {"zero"}:
            raise ValueError(
                f"{name}: all edges are zero, so that nothing reaches the output; it cannot be "
                "trained"
            )
        check_sees(genotype, name)
        return DERIVED, scaled | {"genotype": genotype.to_dict()}
    if not timm.is_model(name):
        raise ValueError(
            f"unknown model {name!r}; give {VIT!r}, a shipped genotype "
            f"({', '.join(NAMED_GENOTYPES)}), a genotype file, or the name of a timm model"
        )
    if config.dropout:
        raise ValueError(
            f"dropout={config.dropout:g} is of {VIT!r} and of derived networks; {name!r} is built "
            "as timm defines it: give --dropout 0"
        )
    # Convolutional networks take images of any size, and no argument for it.
    return name, sized if timm.get_pretrained_cfg_value(name, "fixed_input_size") else args


def build_network(config: RetrainConfig, *, in_channels: int, num_classes: int) -> nn.Module:
    """The network that `config.model` names, freshly initialised.

    Raises:
        ValueError: no such model, or one that does not fit the width or the images.
    """
    name, args = architecture(config, in_channels=in_channels, num_classes=num_classes)
    rates = {"proj_drop_rate": config.dropout, "drop_path_rate": config.drop_path}
    args |= {name: rate for name, rate in rates.items() if rate}
    size = config.data.image_size
    try:
        model = timm.create_model(name, **args)
    except _MISFIT as error:
        if name == DERIVED:
            raise ValueError(f"{config.model}: {first_line(error)}") from None
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
        ValueError: what `build_network` refuses, images that are too small for its layers, or
            batches that are too small for its batch norms.
    """
    size = config.data.image_size
    where = f"images of {size} × {size}"
    with torch.device("meta"), torch.no_grad():
        try:
            model = build_network(config, in_channels=in_channels, num_classes=num_classes)
        except (ValueError, RuntimeError):  # a true refusal, which is raised again
            with _RealValues():
                model = build_network(config, in_channels=in_channels, num_classes=num_classes)
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
            f"model {config.model!r} does not give one number per class; it is no classifier"
        )
    return model
