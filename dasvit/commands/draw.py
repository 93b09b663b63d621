"""`draw`: an encoder as pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dasvit.commands.arguments import Arg

__all__ = ["Args", "run"]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Draw an encoder as PNG and SVG.

    python -m dasvit draw dasvit_cifar10 --out encoder
    """

    genotype: Annotated[str, Arg(positional=True, metavar="GENOTYPE")]
    """A shipped genotype's name, a genotype file, or the folder of a search."""
    out: Annotated[str, Arg(metavar="PATH")] = "encoder"
    """Path of the pictures without their ending."""
    title: str | None = None
    """Written above the drawing."""
    plugins: Annotated[tuple[str, ...], Arg(metavar="MODULE")] = ()
    """Python modules to import first; they may register operations."""


def run(args: Args) -> None:
    """Draw, and print the encoder as a formula."""
    from dasvit.report.encoder import encoder_figure
    from dasvit.report.style import save_figure
    from dasvit.run.plugins import load_plugins
    from dasvit.spaces.cell.derived_network import resolve_genotype
    from dasvit.spaces.cell.operations import check_operation

    load_plugins(args.plugins)
    path = Path(args.genotype)
    genotype = resolve_genotype(path / "genotype.json" if path.is_dir() else args.genotype)
    for name in genotype.operations:
        check_operation(name)
    stem = Path(args.out)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        png, svg = save_figure(encoder_figure(genotype, args.title), stem)
    except OSError as error:
        raise ValueError(f"cannot write {stem} ({error}); choose another --out") from None
    print(f"{genotype}\n{png}\n{svg}")
