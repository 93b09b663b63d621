"""`complexity`: parameters, multiply-adds, memory and latency."""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from dasvit.commands.arguments import Arg
from dasvit.data.config import DataConfig
from dasvit.run.settings import Range, check_settings
from dasvit.training.config import RetrainConfig

if TYPE_CHECKING:
    import torch

    from dasvit.costs import Latency

__all__ = ["Args", "run"]

NOTABLE = 0.01
"""A difference of the two counts that is named (ratio)."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """What a network costs: parameters, multiply-adds, memory of its activations, and latency.

    Multiply-adds, with and without attention products, and memory are of one image. Ten seconds at
    most for the networks of Table I; a third of it is the latency.
    python -m dasvit complexity --model dasvit_cifar10 --preset cifar10
    """

    essentials: ClassVar[tuple[str, ...]] = (
        *("model", "preset", "image_size", "dim", "depth", "patch_size", "num_classes"),
        *("in_channels", "latency", "latency_batch", "latency_seconds", "device", "json"),
    )

    idle: ClassVar[frozenset[str]] = frozenset(
        f.name for part in (RetrainConfig, DataConfig) for f in dataclasses.fields(part)
    ) - {*("model", "plugins", "dim", "depth", "patch_size", "vit_heads", "data", "image_size")}

    retrain: RetrainConfig
    preset: Annotated[str, Arg(metavar="NAME")] = "cifar10"
    """Where width, depth and sizes start."""
    num_classes: Annotated[int, Range("[1, inf)")] = 10
    """Outputs of the head."""
    in_channels: Annotated[int, Range("[1, inf)")] = 3
    """1 for grey images, 3 for RGB."""
    latency: bool = True
    """Time the network: the median of many runs, warm, in fp32."""
    latency_batch: Annotated[int, Range("[1, inf)")] = 1
    """Images per timed run."""
    latency_seconds: Annotated[float, Range("(0, inf)")] = 3.0
    """Time to spend on it."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """Where it is timed: auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_settings(self)


def run(args: Args) -> None:
    """Print all costs, as text or as JSON."""
    from dasvit.commands.fvcore_count import fvcore_macs
    from dasvit.costs import check_num_params, complexity, footprint
    from dasvit.run.environment import resolve_device
    from dasvit.run.plugins import load_plugins
    from dasvit.training.networks import model_on_meta

    config = args.retrain
    load_plugins(config.plugins)
    device = resolve_device(args.device)
    model = model_on_meta(config, in_channels=args.in_channels, num_classes=args.num_classes)
    check_num_params(sum(p.numel() for p in model.parameters()))
    image = (args.in_channels, config.data.image_size, config.data.image_size)
    found, memory = complexity(model, image), footprint(model, image)
    second = fvcore_macs(model, image)
    timed = _timed(args, device) if args.latency else None
    if args.json:
        values: dict[str, Any] = {
            "model": config.model,
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
    print(f"{config.model}: {found}")
    if second is not None:
        difference = second / found.macs_total - 1 if found.macs_total else 0.0
        same = abs(difference) <= NOTABLE
        agrees = "the same within 1 %" if same else f"DIFFERS by {difference:+.1%}"
        print(f"fvcore's count of the multiply-adds: {agrees}")
    print(f"memory, fp32: {memory}")
    if timed:
        print(f"latency, {timed}")


def _timed(args: Args, device: "torch.device") -> "Latency":
    import torch

    from dasvit.costs import latency
    from dasvit.training.networks import build_network

    size = args.retrain.data.image_size
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_network(
                args.retrain, in_channels=args.in_channels, num_classes=args.num_classes
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
