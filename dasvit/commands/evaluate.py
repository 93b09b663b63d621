"""`evaluate`: test a trained network."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from dasvit.commands.arguments import Arg

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Test accuracy of a trained network, class by class.

    python -m dasvit evaluate runs/retrain-digits-vit-seed0 --plot confusion
    """

    folder: Annotated[str, Arg(positional=True, metavar="FOLDER")]
    """Folder of a finished retraining."""
    data_dir: Annotated[str | None, Arg(metavar="FOLDER")] = None
    """Where the data set lies, if not where it was trained."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    plot: Annotated[str | None, Arg(metavar="PATH")] = None
    """Draw the confusion matrix to this path, as PNG and SVG."""
    json: bool = False
    """Print JSON: accuracies, recall per class, confusion matrix."""


def run(args: Args) -> None:
    """Print accuracies and the recall of each class, and draw the confusion matrix."""
    from dasvit.report.plots import confusion_figure
    from dasvit.report.style import save_figure
    from dasvit.training.loop import evaluate

    tested = evaluate(args.folder, device=args.device, data_dir=args.data_dir)
    names = tested.class_names
    if args.json:
        values = {
            "accuracy": tested.accuracy,
            "balanced_accuracy": tested.balanced_accuracy,
            "top5_accuracy": tested.top5_accuracy,
            "largest_class": tested.largest_class,
            "images": tested.count,
            "recall": dict(zip(names, tested.recalls, strict=True)),
            "confusion": tested.confusion,
        }
        print(json.dumps(values, indent=2))
    else:
        top5 = f", top-5 {100 * tested.top5_accuracy:.2f} %" if len(names) > 5 else ""
        print(
            f"test accuracy: {100 * tested.accuracy:.2f} % of {tested.count} images{top5}\n"
            f"balanced over the classes: {100 * tested.balanced_accuracy:.2f} %\n"
            f"largest class: {100 * tested.largest_class:.2f} %"
        )
        if tested.accuracy <= tested.largest_class:
            print("this is no better than one answer to all images")
        width = max(map(len, names))
        for name, recall in zip(names, tested.recalls, strict=True):
            share = "no image" if recall is None else f"{100 * recall:6.2f} % right"
            print(f"  {name:{width}}  {share}")
    if args.plot:
        for path in save_figure(confusion_figure(tested.confusion, names), args.plot):
            print(path, file=sys.stderr if args.json else sys.stdout)
