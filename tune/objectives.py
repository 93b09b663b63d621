"""More than one objective: what an encoder costs. No Ray."""

import dataclasses
import functools
from typing import Any

from dasvit.spaces.cell.genotype import Genotype
from dasvit.training.config import RetrainConfig

__all__ = ["ACCURACY", "COSTS", "cost", "vit_cost"]

ACCURACY = "accuracy"
"""The search score, which every sweep maximises."""

COSTS = ("macs", "params")
"""What may be minimised beside it: multiply-adds with those of attention, and parameters."""


def cost(genotype: "Genotype", retrain: RetrainConfig) -> dict[str, int]:
    """Each of `COSTS` of an encoder at the retraining's width, depth, patch and image size.

    Counted for RGB images and 10 classes whatever the data are: patches and head are the same for
    all encoders. Multiply-adds are of one image.
    """
    size = (retrain.data.image_size, retrain.patch_size, retrain.dim, retrain.depth)
    return dict(zip(COSTS, _cost(genotype.canonical().nodes, *size), strict=True))


@functools.lru_cache(maxsize=16)
def vit_cost(retrain: RetrainConfig) -> dict[str, int]:
    """`cost` of the plain ViT."""
    from dasvit.costs import complexity
    from dasvit.training.networks import VIT, model_on_meta

    config = dataclasses.replace(retrain, model=VIT)
    side = config.data.image_size
    found = complexity(model_on_meta(config, in_channels=3, num_classes=10), (3, side, side))
    return dict(zip(COSTS, (found.macs_total, found.num_params), strict=True))


@functools.lru_cache(maxsize=4096)
def _cost(nodes: Any, image_size: int, patch_size: int, dim: int, depth: int) -> tuple[int, int]:
    import torch

    from dasvit.costs import complexity
    from dasvit.spaces.cell.derived_network import DerivedViT
    from dasvit.spaces.cell.genotype import Genotype

    with torch.device("meta"):
        network = DerivedViT(
            Genotype(nodes),
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=depth,
            num_classes=10,
        )
    found = complexity(network, (3, image_size, image_size))
    return found.macs_total, found.num_params
