"""Networks by name: a derived one, the plain ViT, or one of timm's."""

from pathlib import Path

import timm
from torch import nn

from dasvit.config import RetrainConfig
from dasvit.genotype import NAMED_GENOTYPES
from dasvit.network import DASViT, resolve_genotype

__all__ = ["VIT", "build_model"]

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
        )
    is_genotype = config.model in NAMED_GENOTYPES or config.model.endswith(".json")
    if is_genotype or Path(config.model).exists():
        return DASViT(
            resolve_genotype(config.model),
            **size,
            **common,
            embed_dim=config.dim,
            depth=config.depth,
            drop_rate=config.dropout,
        )
    if not timm.is_model(config.model):
        raise ValueError(
            f"unknown model {config.model!r}; give {VIT!r}, a shipped genotype "
            f"({', '.join(NAMED_GENOTYPES)}), a genotype file, or the name of a timm model"
        )
    try:
        return timm.create_model(config.model, **common, img_size=config.data.image_size)
    except TypeError:  # convolutional networks take no image size
        return timm.create_model(config.model, **common)
