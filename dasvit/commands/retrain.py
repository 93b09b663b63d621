"""`retrain`: train one network from scratch."""

from dataclasses import dataclass
from pathlib import Path

from dasvit.commands.console import interruptible
from dasvit.report.events import tee
from dasvit.report.progress import ProgressReport
from dasvit.report.tensorboard import TensorBoardReport
from dasvit.run.distributed import current_processes, launched_by_torchrun
from dasvit.run.environment import resolve_device
from dasvit.training.config import RetrainConfig
from dasvit.training.loop import check_retrain, retrain
from dasvit.training.model_folder import load_retrain_config

__all__ = ["RetrainArgs", "run"]


@dataclass(frozen=True, kw_only=True)
class RetrainArgs:
    """Train a network from scratch on the full training set and test it once.

    Example: python -m dasvit retrain --model runs/search-digits-seed0/genotype.json
    On several GPUs: torchrun --nproc-per-node 4 -m dasvit retrain …
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


def run(args: RetrainArgs) -> None:
    config = load_retrain_config(args.resume) if args.resume else args.config
    path = Path(config.model)
    is_file = config.model.endswith(".json")
    name = (
        config.model if not is_file else path.parent.name if path.stem == "genotype" else path.stem
    )
    out = Path(args.resume or args.out or f"runs/retrain-{args.preset}-{name}-seed{config.seed}")
    settings = {"model": config.model, "seed": config.seed, "lr": config.lr}
    with launched_by_torchrun(resolve_device(args.device)) as device:
        check_retrain(config)  # several processes refuse with one line
        first = current_processes().first
        if first:
            print(f"training {config.model} on {device}, results in {out}", flush=True)
        report = tee(TensorBoardReport(out, settings), ProgressReport())
        interruptible(
            lambda: retrain(
                config,
                out,
                report=report if first else lambda event: None,
                resume=args.resume is not None,
                device=str(device),
            ),
            "retrain",
            out,
        )
    if first:
        print(f"model: {out / 'model'}")
