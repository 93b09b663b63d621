"""`complexity`: parameters, multiply-adds, memory and latency."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from dasvit.commands.fvcore_count import fvcore_macs
from dasvit.costs import Latency, check_num_params, complexity, footprint, latency
from dasvit.run.environment import resolve_device
from dasvit.run.plugins import load_plugins
from dasvit.run.settings import SettingError
from dasvit.training.config import RetrainConfig
from dasvit.training.networks import build_model, model_on_meta

__all__ = ["ComplexityArgs", "run"]

NOTABLE = 0.01
"""A difference of the two counts that is named (ratio)."""


@dataclass(frozen=True, kw_only=True)
class ComplexityArgs:
    """What a network costs: parameters, multiply-adds with and without attention products, memory
    of its activations, and latency on the device at hand.

    Multiply-adds and memory are of one image. Ten seconds at most for the networks of Table I; a
    third of it is the latency.
    Example: python -m dasvit complexity --model dasvit_cifar10 --preset cifar10
    """

    config: RetrainConfig
    preset: str = "cifar10"
    """Where width, depth and sizes start."""
    num_classes: int = 10
    """Outputs of the head."""
    in_channels: int = 3
    """1 for grey images, 3 for RGB."""
    latency: bool = True
    """Time the network: the median of many runs, warm, in fp32."""
    latency_batch: int = 1
    """Images a timed run."""
    latency_seconds: float = 3.0
    """Time to spend on it."""
    device: str = "auto"
    """Where it is timed: auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels", "latency_batch", "latency_seconds"):
            if not 0 < getattr(self, name) < 2**31:
                flag = f"--{name.replace('_', '-')}"
                raise SettingError(f"{flag} must be positive, but got {getattr(self, name)}")


def run(args: ComplexityArgs) -> None:
    load_plugins(args.config.plugins)
    device = resolve_device(args.device)
    model = model_on_meta(args.config, in_channels=args.in_channels, num_classes=args.num_classes)
    check_num_params(sum(p.numel() for p in model.parameters()))
    size = args.config.data.image_size
    image = (args.in_channels, size, size)
    found, second, memory = (
        complexity(model, image),
        fvcore_macs(model, image),
        footprint(model, image),
    )
    timed = _timed(args, device) if args.latency else None
    if args.json:
        values: dict[str, Any] = {
            "model": args.config.model,
            "image": image,
            "num_classes": args.num_classes,
            **dataclasses.asdict(found),
            "macs_total": found.macs_total,
            "macs_fvcore": second,
            "bytes": dataclasses.asdict(memory),
            "latency": timed and dataclasses.asdict(timed) | {"throughput": timed.throughput},
        }
        print(json.dumps(values))
        return
    print(f"{args.config.model}: {found}")
    if second is not None:
        difference = second / found.macs_total - 1 if found.macs_total else 0.0
        agrees = (
            "the same within 1 %" if abs(difference) <= NOTABLE else f"DIFFERS by {difference:+.1%}"
        )
        print(f"fvcore's count of the multiply-adds: {agrees}")
    print(f"memory, fp32: {memory}")
    if timed:
        print(f"latency, {timed}")


def _timed(args: ComplexityArgs, device: torch.device) -> Latency:
    size = args.config.data.image_size
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(
                args.config, in_channels=args.in_channels, num_classes=args.num_classes
            ).to(device)
            images = torch.randn(args.latency_batch, args.in_channels, size, size).to(device)
        return latency(model, images, seconds=args.latency_seconds)
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise ValueError(
            f"{args.latency_batch} images of {size} × {size} do not fit on {device}; choose a "
            "smaller --latency-batch, or --no-latency"
        ) from None
