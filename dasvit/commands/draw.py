"""`draw`: an encoder as pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dasvit.report.encoder import encoder_figure
from dasvit.report.style import save_figure
from dasvit.run.plugins import load_plugins
from dasvit.spaces.cell.network import resolve_genotype
from dasvit.spaces.cell.operations import check_operation

__all__ = ["DrawArgs", "run"]


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


def run(args: DrawArgs) -> None:
    load_plugins(args.plugins)
    path = Path(args.genotype)
    genotype = resolve_genotype(path / "genotype.json" if path.is_dir() else args.genotype)
    for name in genotype.operations:
        check_operation(name)
    stem = Path(args.out)
    try:
        png, svg = save_figure(encoder_figure(genotype, args.title), stem)
    except OSError as error:
        raise ValueError(f"cannot write {stem} ({error}); choose another --out") from None
    print(f"{genotype}\n{png}\n{svg}")
