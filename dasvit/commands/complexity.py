"""`complexity`: parameters and multiply-adds."""

import dataclasses
import json
from dataclasses import dataclass

from dasvit.complexity import complexity
from dasvit.config import RetrainConfig
from dasvit.models import build_model
from dasvit.ops import load_plugins

__all__ = ["ComplexityArgs", "run"]


@dataclass(frozen=True, kw_only=True)
class ComplexityArgs:
    """Parameters and multiply-adds of a network, with and without attention products.

    Example: python -m dasvit complexity --model dasvit_cifar10 --preset cifar10
    """

    config: RetrainConfig
    preset: str = "cifar10"
    """Where width, depth and sizes start."""
    num_classes: int = 10
    """Outputs of the head."""
    in_channels: int = 3
    """1 for grey images, 3 for RGB."""
    json: bool = False
    """Print JSON."""


def run(args: ComplexityArgs) -> None:
    load_plugins(args.config.plugins)
    model = build_model(args.config, in_channels=args.in_channels, num_classes=args.num_classes)
    size = args.config.data.image_size
    found = complexity(model, (args.in_channels, size, size))
    if args.json:
        values = dataclasses.asdict(found) | {"macs_total": found.macs_total}
        print(json.dumps({"model": args.config.model, **values}))
    else:
        print(f"{args.config.model}: {found}")
