"""How all figures look, and how they are saved. No pyplot, no global state."""

from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

__all__ = ["CURVES", "FAINT", "FONT", "INK", "STYLE", "new_figure", "save_figure"]

FONT = "DejaVu Sans"  # ships with matplotlib: the same letters on every machine
INK = "#333333"
FAINT = "#b5b5b5"
# Distinct for colour-blind readers (Okabe and Ito).
CURVES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: dict[str, Any] = {
    "font.family": FONT,
    "font.size": 10,
    "mathtext.fontset": "cm",
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "axes.prop_cycle": cycler(color=CURVES),
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "svg.hashsalt": "dasvit",  # else identifiers are random
}
"""Every function that draws is decorated with `matplotlib.rc_context(STYLE)`."""


def new_figure(width: float, height: float, title: str | None = None) -> Figure:
    """An empty figure (inches) that keeps its parts apart, with a title above them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


@matplotlib.rc_context(STYLE)
def save_figure(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write `<stem>.png` (200 dpi) and `<stem>.svg`; equal figures give equal bytes.

    Args:
        figure: as drawn.
        stem: path without suffix (a dot in its name is part of the name, the ending of one of the
            two files is not); its folder is made.

    Returns:
        Both paths.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    name = stem.stem if stem.suffix in (".png", ".svg") else stem.name
    png, svg = (stem.with_name(name + suffix) for suffix in (".png", ".svg"))
    figure.savefig(png, dpi=200)
    figure.savefig(svg, metadata={"Date": None})
    return png, svg
