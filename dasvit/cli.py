"""The command line: `python -m dasvit search | retrain | evaluate | complexity | draw | memory`."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from dasvit.arguments import parse, preset_from_argv
from dasvit.complexity import complexity
from dasvit.config import RetrainConfig, SearchConfig
from dasvit.environment import resolve_device
from dasvit.genotype import Genotype
from dasvit.memory import device_memory, shortfall, what_fits
from dasvit.memory_report import (
    figure_1,
    format_table,
    memory_figure,
    memory_table,
    parse_bytes,
    save_figure,
)
from dasvit.metrics import tee
from dasvit.network import resolve_genotype
from dasvit.ops import check_operation, load_plugins
from dasvit.plots import save_encoder
from dasvit.progress import ProgressReport
from dasvit.retrain import build_model, check_retrain, evaluate, load_retrain_config, retrain
from dasvit.search import OUTER_SETTINGS, check_search, check_supernet, load_search_config, search
from dasvit.tensorboard import tensorboard_report

__all__ = ["main"]

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True, kw_only=True)
class SearchArgs:
    """Search for an encoder (Algorithm 1): supernet, pruning stages, derived genotype.

    Settings start from --preset; every one of them can be changed by its name.
    Example: python -m dasvit search --preset digits --token-ratio 0.7 --seed 1
    """

    config: SearchConfig
    preset: str = "digits"
    """Where the settings start: digits, digits_darts, cifar10, cifar10_darts, imagenet100,
    imagenet100_darts."""
    out: str | None = None
    """Folder for the results (default: runs/search-PRESET-seedN)."""
    resume: str | None = None
    """Continue the search in this folder with its own settings; all other settings are ignored."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class RetrainArgs:
    """Train a network from scratch on the full training set and test it once.

    Example: python -m dasvit retrain --model runs/search-digits-seed0/genotype.json
    """

    config: RetrainConfig
    preset: str = "digits"
    """Where the settings start; the same names as for search."""
    out: str | None = None
    """Folder for the results (default: runs/retrain-PRESET-MODEL-seedN)."""
    resume: str | None = None
    """Continue the training in this folder with its own settings; all others are ignored."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArgs:
    """Test accuracy of a trained network.

    Example: python -m dasvit evaluate runs/retrain-digits-vit-seed0
    """

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of a finished retraining."""
    data_dir: str | None = None
    """Where the data set lies, if not where it was trained."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


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


@dataclass(frozen=True, kw_only=True)
class DrawArgs:
    """Draw an encoder as PNG and SVG.

    Example: python -m dasvit draw dasvit_cifar10 --out encoder
    """

    genotype: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="GENOTYPE")]
    """A shipped genotype's name, a genotype file, or the folder of a search."""
    out: str = "encoder"
    """Path of the pictures without their ending."""
    title: str | None = None
    """Written above the drawing."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register operations."""


@dataclass(frozen=True, kw_only=True)
class MemoryArgs:
    """Plan a search's peak memory before launch, without a GPU.

    Every stage, first and second order, at the configured λ and at 1, 0.5 and 0.25. Seconds to a
    few minutes; nothing is trained.
    Example: python -m dasvit memory --preset cifar10 --batch-size 64 --budget 24GiB
    """

    config: SearchConfig
    preset: str = "cifar10"
    """Where the settings start; the same names as for search."""
    budget: str | None = None
    """Memory of the device, 24GiB say: which batches and settings fit."""
    plot: str | None = None
    """Draw memory against batch size (the paper's Figure 1) to this path, as PNG and SVG."""
    json: bool = False
    """Print JSON."""


def fail(message: str, code: int = 2) -> NoReturn:
    """One line on stderr, and the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def _search(args: SearchArgs) -> None:
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
    _interruptible(
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
    preset = "" if args.resume else f" --preset {args.preset}"  # a resumed run's is not known
    data_dir = f" --data-dir {config.data.data_dir}" if config.data.data_dir else ""
    print(
        f"next: python -m dasvit retrain{preset}{data_dir} --model {out / 'genotype.json'}{plugins}"
    )


def _retrain(args: RetrainArgs) -> None:
    config = load_retrain_config(args.resume) if args.resume else args.config
    path = Path(config.model)
    is_file = config.model.endswith(".json")
    name = (
        config.model if not is_file else path.parent.name if path.stem == "genotype" else path.stem
    )
    out = Path(args.resume or args.out or f"runs/retrain-{args.preset}-{name}-seed{config.seed}")
    check_retrain(config)
    settings = {"model": config.model, "seed": config.seed, "lr": config.lr}
    print(f"training {config.model} on {resolve_device(args.device)}, results in {out}", flush=True)
    _interruptible(
        lambda: retrain(
            config,
            out,
            report=tee(tensorboard_report(out, settings), ProgressReport()),
            resume=args.resume is not None,
            device=args.device,
        ),
        f"python -m dasvit retrain --resume {out}",
    )
    print(f"weights: {out / 'model.safetensors'}")


def _interruptible(run: Callable[[], Any], again: str) -> None:
    try:
        run()
    except KeyboardInterrupt:
        fail(f"stopped; the last epoch's checkpoint is kept, continue with: {again}", 130)


def _evaluate(args: EvaluateArgs) -> None:
    top1, top5 = evaluate(args.folder, device=args.device, data_dir=args.data_dir)
    print(f"test accuracy: top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %")


def _complexity(args: ComplexityArgs) -> None:
    load_plugins(args.config.plugins)
    model = build_model(args.config, in_channels=args.in_channels, num_classes=args.num_classes)
    size = args.config.data.image_size
    found = complexity(model, (args.in_channels, size, size))
    if args.json:
        values = dataclasses.asdict(found) | {"macs_total": found.macs_total}
        print(json.dumps({"model": args.config.model, **values}))
    else:
        print(f"{args.config.model}: {found}")


def _draw(args: DrawArgs) -> None:
    load_plugins(args.plugins)
    path = Path(args.genotype)
    genotype = resolve_genotype(path / "genotype.json" if path.is_dir() else args.genotype)
    for name in genotype.operations:
        check_operation(name)
    stem = Path(args.out)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        png, svg = save_encoder(genotype, stem, args.title)
    except OSError as error:
        raise ValueError(f"cannot write {stem} ({error}); choose another --out") from None
    print(f"{genotype}\n{png}\n{svg}")


def _memory(args: MemoryArgs) -> None:
    config = args.config
    budget = parse_bytes(args.budget) if args.budget else None
    check_supernet(config)

    def progress(line: str) -> None:
        print(f"{line} …", file=sys.stderr, flush=True)

    rows = memory_table(config, progress)
    if budget:
        progress("looking for what fits")
    fits = what_fits(config, budget) if budget else []
    if args.json:
        values = [
            row | {"stages": [dataclasses.asdict(plan) for plan in row["stages"]]} for row in rows
        ]
        print(json.dumps({"batch_size": config.batch_size, "plans": values, "fits": dict(fits)}))
    else:
        print(
            f"planned peak memory in GiB, batch {config.batch_size}, {config.precision}"
            f"{', recomputed' if config.recompute else ''}\n{format_table(rows)}"
        )
        for flags, batch in fits:
            what = f"--batch-size {batch}" if batch else "not even one image"
            print(f"within {args.budget}{' with ' if flags else ''}{flags}: {what}")
    if args.plot:
        progress("drawing memory against batch size")
        gib = budget / 2**30 if budget else 24.0
        figure = memory_figure(figure_1(config), budget=gib, title=f"{args.preset}: a search step")
        for path in save_figure(figure, Path(args.plot)):
            print(path, file=sys.stderr if args.json else sys.stdout)


Command = SearchArgs | RetrainArgs | EvaluateArgs | ComplexityArgs | DrawArgs | MemoryArgs


def _command(argv: Sequence[str]) -> Command:
    paper = argv[:1] in (["complexity"], ["memory"])
    preset = preset_from_argv(argv, "cifar10" if paper else "digits")
    sub = tyro.conf.subcommand
    defaults = {"preset": preset.name}
    commands = (
        Annotated[SearchArgs, sub("search", default=SearchArgs(config=preset.search, **defaults))]
        | Annotated[
            RetrainArgs, sub("retrain", default=RetrainArgs(config=preset.retrain, **defaults))
        ]
        | Annotated[EvaluateArgs, sub("evaluate")]
        | Annotated[
            ComplexityArgs,
            sub("complexity", default=ComplexityArgs(config=preset.retrain, **defaults)),
        ]
        | Annotated[DrawArgs, sub("draw")]
        | Annotated[MemoryArgs, sub("memory", default=MemoryArgs(config=preset.search, **defaults))]
    )
    return parse(
        commands,
        argv,
        config=(Flat,),
        prog="python -m dasvit",
        description="Differentiable architecture search for vision transformers.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, and turn what a user can mend into one line and a non-zero exit."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _command(argv)
        match command:
            case SearchArgs():
                _search(command)
            case RetrainArgs():
                _retrain(command)
            case EvaluateArgs():
                _evaluate(command)
            case ComplexityArgs():
                _complexity(command)
            case DrawArgs():
                _draw(command)
            case MemoryArgs():
                _memory(command)
    except ValueError as error:
        fail(str(error))
    except FloatingPointError as error:
        fail(str(error), 1)
