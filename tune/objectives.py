"""More than one objective: what an encoder costs, and the Pareto front. No Ray."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dasvit.training.config import RetrainConfig

if TYPE_CHECKING:
    from dasvit.spaces.cell.genotype import Genotype

__all__ = ["ACCURACY", "COSTS", "cost", "front", "parse_objectives", "spread_out", "vit_cost"]

ACCURACY = "accuracy"
"""The search score, which every sweep maximises."""

COSTS = ("macs", "params")
"""What may be minimised beside it: multiply-adds with those of attention, and parameters."""


def parse_objectives(text: str) -> tuple[str, ...]:
    """`accuracy,macs` as a tuple.

    Raises:
        ValueError: an unknown or repeated objective, or accuracy is not the first.
    """
    names = tuple(part.strip() for part in text.split(","))
    known = (ACCURACY, *COSTS)
    for name in names:
        if name not in known:
            raise ValueError(
                f"--objectives {text}: unknown objective {name!r}; known: {', '.join(known)}"
            )
    if names[0] != ACCURACY or len(set(names)) != len(names):
        raise ValueError(
            f"--objectives {text}: begin with accuracy and name each once, like accuracy,macs"
        )
    return names


def cost(genotype: "Genotype", retrain: RetrainConfig) -> dict[str, int]:
    """Each of `COSTS` of an encoder at the retraining's width, depth, patch and image size.

    Counted for RGB images and 10 classes whatever the data are: patches and head are the same for
    all encoders. Multiply-adds are of one image.
    """
    size = (retrain.data.image_size, retrain.patch_size, retrain.dim, retrain.depth)
    return dict(zip(COSTS, _cost(genotype.canonical().nodes, *size), strict=True))


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
    from dasvit.spaces.cell.genotype import Genotype
    from dasvit.spaces.cell.network import DASViT

    with torch.device("meta"):
        network = DASViT(
            Genotype(nodes),
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=depth,
            num_classes=10,
        )
    found = complexity(network, (3, image_size, image_size))
    return found.macs_total, found.num_params


def front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """The names of points that no other point beats: it would be as good in every value and
    better in one. Larger is better; equal points stay together."""
    return [
        name
        for name, values in points.items()
        if not any(_beats(other, values) for other in points.values())
    ]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """`count` of `names`, evenly along their order: the first and the last, and between."""
    if count >= len(names):
        return list(names)
    if count == 1:
        return [names[-1]]
    places = [round(i * (len(names) - 1) / (count - 1)) for i in range(count)]
    return [names[place] for place in places]
