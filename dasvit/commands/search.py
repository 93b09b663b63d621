"""`search`: find an encoder."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from dasvit.commands.console import interruptible
from dasvit.presets import PRESETS, get_preset
from dasvit.report.encoder import encoder_figure
from dasvit.report.events import tee
from dasvit.report.progress import ProgressReport
from dasvit.report.style import save_figure
from dasvit.report.tensorboard import TensorBoardReport
from dasvit.run.environment import resolve_device
from dasvit.search.config import SearchConfig
from dasvit.search.loop import check_search, load_search_config, search
from dasvit.search.memory import device_memory, shortfall
from dasvit.spaces.cell.genotype import Genotype

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


def _looking(line: str) -> None:
    print(f"{line} …", file=sys.stderr, flush=True)


def run(args: SearchArgs) -> None:
    config = load_search_config(args.resume) if args.resume else args.config
    out = Path(args.resume or args.out or f"runs/search-{args.preset}-seed{config.seed}")
    check_search(config)
    settings = config.outer_settings
    available = device_memory(resolve_device(args.device))
    if available and (warning := shortfall(config, available, _looking)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    print(
        f"searching {config.data.dataset} on {resolve_device(args.device)}, results in {out}",
        flush=True,
    )
    interruptible(
        lambda: search(
            config,
            out,
            report=tee(TensorBoardReport(out, settings), ProgressReport()),
            resume=args.resume is not None,
            device=args.device,
        ),
        "search",
        out,
    )
    png, svg = save_figure(encoder_figure(Genotype.load(out / "genotype.json")), out / "encoder")
    print(f"genotype: {out / 'genotype.json'}; drawn in {png.name} and {svg.name}")
    print(f"next: {_retrain_command(args, config, out / 'genotype.json')}")


def _retrain_command(args: SearchArgs, config: SearchConfig, genotype: Path) -> str:
    """What retrains the encoder on the images that it was searched on."""
    preset = get_preset(_like(config) if args.resume else args.preset)
    usual = preset.retrain
    words = ["python", "-m", "dasvit", "retrain", "--preset", preset.name]
    for name in ("dataset", "data_dir", "image_size", "test_fraction"):
        value = getattr(config.data, name)
        if value is not None and value != getattr(usual.data, name):
            words += ["--" + name.replace("_", "-"), str(value)]
    if config.space.patch_size != usual.patch_size:
        words += ["--patch-size", str(config.space.patch_size)]
    words += ["--model", str(genotype)]
    return shlex.join([*words, *(("--plugins", *config.plugins) if config.plugins else ())])


def _like(config: SearchConfig) -> str:
    """The preset of a resumed run, which does not know its own: the first of its data set."""
    presets = map(get_preset, PRESETS)
    same = (p.name for p in presets if p.search.data.dataset == config.data.dataset)
    return next(same, "digits")
