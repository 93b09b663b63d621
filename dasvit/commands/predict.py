"""`predict`: classes of image files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dasvit.commands.console import fail
from dasvit.deploy.predict import Prediction, Unreadable, find_images, predict, to_csv
from dasvit.run.files import write_atomic
from dasvit.run.plugins import load_plugins
from dasvit.training.model_folder import load

__all__ = ["PredictArgs", "run"]


@dataclass(frozen=True, kw_only=True)
class PredictArgs:
    """Class and probability of images; for a folder of images, or with --out, as CSV.

    Files that are no readable images are named and skipped; the exit status is then 1.

    Example: python -m dasvit predict --model runs/digits/best photos --out photos.csv
    """

    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE|FOLDER")]
    """Image files, and folders of them."""
    model: str
    """Folder of a finished retraining, a sweep's best/, or a model folder."""
    out: str | None = None
    """CSV file to write."""
    force: bool = False
    """Replace an --out that exists."""
    top_k: int = 1
    """Classes an image, best first."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first; they may register operations of their own."""


def run(args: PredictArgs) -> None:
    paths = find_images(args.images)
    out = Path(args.out) if args.out is not None else None
    if out is not None and out.exists() and (out.is_dir() or not args.force):
        raise ValueError(f"{out} exists; choose another --out, or replace it with --force")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent}; make it, or choose another --out")
    load_plugins(args.plugins)
    trained = load(args.model, args.device)
    as_csv = out is not None or any(Path(image).is_dir() for image in args.images)
    rows: list[Prediction] = []
    skipped = 0
    for row in predict(trained, paths, batch_size=args.batch_size, top_k=args.top_k):
        if isinstance(row, Unreadable):
            skipped += 1
            print(f"skipped: {row.reason}", file=sys.stderr)
        elif as_csv:
            rows.append(row)
        else:
            pairs = zip(row.classes, row.probabilities, strict=True)
            print(f"{row.path}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in pairs))
    if out is not None:
        try:
            write_atomic(out, to_csv(rows))
        except OSError as error:
            raise ValueError(f"cannot write {out} ({error}); choose another --out") from None
        print(f"predictions: {out} ({len(rows)} images)")
    elif as_csv:
        sys.stdout.write(to_csv(rows))
    if skipped:
        fail(f"{skipped} of {len(paths)} images could not be read", 1)
