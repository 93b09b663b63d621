"""`predict`: classes of image files."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dasvit.commands.arguments import Arg
from dasvit.commands.console import fail

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Class and probability of images; for a folder of images, or with --out, as CSV.

    Files that are no readable images are named and skipped; the exit status is then 1.
    python -m dasvit predict --model runs/digits/best photos --out photos.csv
    """

    images: Annotated[tuple[str, ...], Arg(positional=True, metavar="IMAGE|FOLDER")]
    """Image files, and folders of them."""
    model: Annotated[str, Arg(metavar="FOLDER")]
    """Folder of a finished retraining, a sweep's best/, or a model folder."""
    out: Annotated[str | None, Arg(metavar="FILE")] = None
    """CSV file to write."""
    force: bool = False
    """Replace an --out that exists."""
    top_k: int = 1
    """Classes per image, best first."""
    batch_size: int = 64
    """Images at a time."""
    device: Annotated[str, Arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    plugins: Annotated[tuple[str, ...], Arg(metavar="MODULE")] = ()
    """Python modules to import first; they may register operations of their own."""


def run(args: Args) -> None:
    """Print or write the predictions."""
    from dasvit.deploy.predict import Prediction, Unreadable, find_images, predict, to_csv
    from dasvit.run.files import write_atomic
    from dasvit.run.plugins import load_plugins
    from dasvit.training.model_folder import load

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
