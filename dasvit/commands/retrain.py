"""`retrain`: train one network from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from dasvit.commands.arguments import Arg
from dasvit.commands.console import interruptible
from dasvit.presets import DEFAULT_PRESET
from dasvit.training.config import RetrainConfig

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train a network from scratch on the full training set and test it once.

    python -m dasvit retrain --model runs/search-digits-seed0/genotype.json
    On several GPUs: torchrun --nproc-per-node 4 -m dasvit retrain …
    """

    essentials: ClassVar[tuple[str, ...]] = (
        *("model", "preset", "dataset", "data_dir", "image_size", "augment", "out", "resume"),
        *("device", "seed", "dim", "depth", "patch_size", "epochs", "warmup_epochs", "batch_size"),
        *("lr", "weight_decay", "label_smoothing", "precision"),
    )

    with_resume: ClassVar[tuple[str, ...]] = ("resume", "device")

    retrain: RetrainConfig
    preset: Annotated[str, Arg(metavar="NAME")] = DEFAULT_PRESET
    """Where the settings start; the same names as for search."""
    out: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Folder for the results (default: runs/retrain-PRESET-MODEL-seedN)."""
    resume: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Continue the training in this folder by its own settings; give no others."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(args: Args) -> None:
    """Train, alone or as one of the processes that torchrun started."""
    from dasvit.report.events import model_name, tee
    from dasvit.report.progress import ProgressReport
    from dasvit.report.tensorboard import TensorBoardReport
    from dasvit.run.distributed import current_processes, launched_by_torchrun
    from dasvit.run.environment import resolve_device
    from dasvit.run.settings import config_to_dict
    from dasvit.training.loop import check_retrain, retrain
    from dasvit.training.model_folder import load_retrain_config

    config = load_retrain_config(args.resume) if args.resume else args.retrain
    name = model_name(config.model)
    out = Path(args.resume or args.out or f"runs/retrain-{args.preset}-{name}-seed{config.seed}")
    with launched_by_torchrun(resolve_device(args.device)) as device:
        check_retrain(config)  # several processes refuse with one line
        first = current_processes().first
        if first:
            finished = args.resume and (out / "result.json").exists()
            doing = "finished already:" if finished else f"training {config.model} on {device},"
            print(f"{doing} results in {out}", flush=True)
        report = tee(TensorBoardReport(out, config_to_dict(config)), ProgressReport())
        with interruptible("retrain", out):
            retrain(
                config,
                out,
                report=report if first else lambda event: None,
                resume=args.resume is not None,
                device=str(device),
            )
    if first:
        print(f"model: {out / 'model'}")
