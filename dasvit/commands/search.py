"""`search`: find an encoder."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from dasvit.commands.arguments import Arg
from dasvit.commands.console import interruptible, program, told
from dasvit.presets import DEFAULT_PRESET, PRESETS, get_preset
from dasvit.run.plugins import plugins_for
from dasvit.search.config import SearchConfig

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Search for an encoder: supernet, pruning stages, derived genotype (Algorithm 1).

    All settings start from --preset. Seconds on the embedded digits:
    python -m dasvit search --preset digits --token-ratio 0.7 --seed 1
    """

    essentials: ClassVar[tuple[str, ...]] = (
        *("preset", "method", "dataset", "data_dir", "image_size", "augment", "out", "resume"),
        *("device", "seed", "operations", "dim", "patch_size", "stage_layers", "stage_ops"),
        *("stage_epochs", "batch_size", "weight_lr", "token_ratio", "xi"),
    )

    with_resume: ClassVar[tuple[str, ...]] = ("resume", "device")

    search: SearchConfig
    preset: Annotated[str, Arg(metavar="NAME")] = DEFAULT_PRESET
    """Where the settings start: digits, fashion_mnist, cifar10 or imagenet100;
    with _modern retrained by today's recipe."""
    method: Annotated[str, Arg(metavar="NAME")] = "dasvit"
    """How to search: a name of docs/methods.md, or of a module of --plugins."""
    out: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Folder for the results (default: runs/search-PRESET-seedN)."""
    resume: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Continue the search in this folder by its own settings; give no others."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(args: Args) -> None:
    """Search, draw the encoder, and say what trains it."""
    from dasvit.report.encoder import encoder_figure
    from dasvit.report.events import tee
    from dasvit.report.progress import ProgressReport
    from dasvit.report.style import save_figure
    from dasvit.report.tensorboard import TensorBoardReport
    from dasvit.run.environment import resolve_device
    from dasvit.run.settings import config_to_dict
    from dasvit.search.checks import check_search
    from dasvit.search.loop import load_search_config, search
    from dasvit.search.memory import device_memory, shortfall
    from dasvit.spaces.cell.genotype import Genotype

    config = load_search_config(args.resume) if args.resume else args.search
    out = Path(args.resume or args.out or f"runs/search-{args.preset}-seed{config.seed}")
    check_search(config)
    device = resolve_device(args.device)
    available = device_memory(device)
    if available and (warning := shortfall(config, available, told)):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    resume = args.resume is not None
    finished = resume and (out / "result.json").exists()
    doing = "finished already:" if finished else f"searching {config.data.dataset} on {device},"
    print(f"{doing} results in {out}", flush=True)
    report = tee(TensorBoardReport(out, config_to_dict(config)), ProgressReport())
    with interruptible("search", out):
        search(config, out, report=report, resume=resume, device=args.device)
    genotype = Genotype.load(out / "genotype.json")
    png, svg = save_figure(encoder_figure(genotype), out / "encoder")
    print(f"genotype: {out / 'genotype.json'}; drawn in {png.name} and {svg.name}")
    plugins = plugins_for(config.plugins, genotype.families)
    print(f"next: {_retrain_command(args, config, out / 'genotype.json', plugins)}")


def _retrain_command(
    args: Args, config: SearchConfig, genotype: Path, plugins: Sequence[str]
) -> str:
    """What retrains the encoder on the images that it was searched on."""
    preset = get_preset(_like(config) if args.resume else args.preset)
    usual = preset.retrain
    words = [*program().split(), "retrain", "--preset", preset.name]
    for name in ("dataset", "data_dir", "image_size", "test_fraction"):
        value = getattr(config.data, name)
        if value is not None and value != getattr(usual.data, name):
            words += ["--" + name.replace("_", "-"), str(value)]
    if config.space.patch_size != usual.patch_size:
        words += ["--patch-size", str(config.space.patch_size)]
    words += ["--model", str(genotype)]
    return shlex.join([*words, *(("--plugins", *plugins) if plugins else ())])


def _like(config: SearchConfig) -> str:
    """The first preset with the data set of a resumed run, which does not know its own."""
    presets = map(get_preset, PRESETS)
    same = (p.name for p in presets if p.search.data.dataset == config.data.dataset)
    return next(same, DEFAULT_PRESET)
