"""`search`: find an encoder."""

import sys
from dataclasses import dataclass
from pathlib import Path

from dasvit.commands.console import interruptible
from dasvit.config import OUTER_SETTINGS, SearchConfig
from dasvit.environment import resolve_device
from dasvit.genotype import Genotype
from dasvit.memory import device_memory, shortfall
from dasvit.metrics import tee
from dasvit.plots import save_encoder
from dasvit.presets import get_preset
from dasvit.progress import ProgressReport
from dasvit.search import check_search, load_search_config, search
from dasvit.tensorboard import tensorboard_report

__all__ = ["SearchArgs", "run"]


@dataclass(frozen=True, kw_only=True)
class SearchArgs:
    """Search for an encoder (Algorithm 1): supernet, pruning stages, derived genotype.

    Settings start from --preset; every one of them can be changed by its name.
    Example: python -m dasvit search --preset digits --token-ratio 0.7 --seed 1
    """

    config: SearchConfig
    preset: str = "digits"
    """Where the settings start: digits, fashion_mnist, cifar10 or imagenet100; with _darts
    searched by plain DARTS (not fashion_mnist), with _modern retrained by today's usual recipe
    (cifar10 and imagenet100)."""
    out: str | None = None
    """Folder for the results (default: runs/search-PRESET-seedN)."""
    resume: str | None = None
    """Continue the search in this folder with its own settings; all other settings are ignored."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(args: SearchArgs) -> None:
    config = load_search_config(args.resume) if args.resume else args.config
    out = Path(args.resume or args.out or f"runs/search-{args.preset}-seed{config.seed}")
    check_search(config)
    settings = {name: getattr(config, name) for name in OUTER_SETTINGS}
    available = device_memory(resolve_device(args.device))
    if available and (warning := shortfall(config, available)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    print(
        f"searching {config.data.dataset} on {resolve_device(args.device)}, results in {out}",
        flush=True,
    )
    interruptible(
        lambda: search(
            config,
            out,
            report=tee(tensorboard_report(out, settings), ProgressReport()),
            resume=args.resume is not None,
            device=args.device,
        ),
        f"python -m dasvit search --resume {out}",
    )
    png, svg = save_encoder(Genotype.load(out / "genotype.json"), out / "encoder")
    print(f"genotype: {out / 'genotype.json'}; drawn in {png.name} and {svg.name}")
    plugins = f" --plugins {' '.join(config.plugins)}" if config.plugins else ""
    usual = get_preset(args.preset).search.data.dataset
    preset = "" if args.resume else f" --preset {args.preset}"  # a resumed run's is not known
    data = config.data
    images = f" --dataset {data.dataset}" if data.dataset != usual else ""
    images += f" --data-dir {data.data_dir}" if data.data_dir else ""
    print(
        f"next: python -m dasvit retrain{preset}{images} --model {out / 'genotype.json'}{plugins}"
    )
