"""`evaluate`: test a trained network."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from dasvit.training.loop import evaluate

__all__ = ["EvaluateArgs", "run"]


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


def run(args: EvaluateArgs) -> None:
    top1, top5 = evaluate(args.folder, device=args.device, data_dir=args.data_dir)
    print(f"test accuracy: top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %")
