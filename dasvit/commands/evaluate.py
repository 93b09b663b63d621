"""`evaluate`: test a trained network."""

from dataclasses import dataclass
from typing import Annotated

from dasvit.commands.arguments import Arg

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Test accuracy of a trained network.

    python -m dasvit evaluate runs/retrain-digits-vit-seed0
    """

    folder: Annotated[str, Arg(positional=True, metavar="FOLDER")]
    """Folder of a finished retraining."""
    data_dir: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Where the data set lies, if not where it was trained."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(args: Args) -> None:
    """Print top-1 and top-5 accuracy."""
    from dasvit.training.loop import evaluate

    top1, top5 = evaluate(args.folder, device=args.device, data_dir=args.data_dir)
    print(f"test accuracy: top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} %")
