"""`python -m dasvit memory`: the plan as a table, as JSON and as the paper's Figure 1."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from dasvit.methods import DARTS, DASViT
from dasvit.report.style import FAINT, new_figure
from dasvit.run.settings import SettingError
from dasvit.search.config import SearchConfig
from dasvit.search.memory import StagePlan, plan_search

__all__ = [
    "figure_1",
    "format_table",
    "memory_figure",
    "memory_table",
    "parse_bytes",
]

GIB = 2**30
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": GIB}

BATCHES = (32, 64, 128, 256)
"""Of Figure 1."""


def parse_bytes(text: str) -> int:
    """Bytes of `24GiB`, `24 GB` or `800MiB`.

    Raises:
        SettingError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    number = float(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0.0
    if not 1 <= number < math.inf:
        raise SettingError(f"--budget must be like 24GiB or 24GB, but got {text!r}")
    return int(number)


def memory_table(config: SearchConfig, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Plans of first and second order of a search, and of what its method compares with it.

    Args:
        config: everything but ξ.
        progress: told what is planned next.

    Returns:
        One row per λ and order: token_ratio, order, and one `StagePlan` per stage.
    """
    # Any ξ > 0: its value does not change the memory.
    orders = {1: 0.0, 2: config.method.xi or config.weight_lr}
    rows = []
    for method in config.method.lighter():
        ratio = method.route().token_ratio
        for order, xi in orders.items():
            progress(f"planning λ = {ratio:g}, order {order}")
            stages = plan_search(replace(config, method=replace(method, xi=xi)))
            rows.append({"token_ratio": ratio, "order": order, "stages": stages})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the peak of each stage, in GiB, or in MiB where none has as much as one."""
    stages: list[StagePlan] = rows[0]["stages"]
    names = " | ".join(f"stage {plan.stage + 1}" for plan in stages)
    lines = [f"| λ | order | {names} | most |", "| --- " * (len(stages) + 3) + "|"]
    peaks = [[plan.peak for plan in row["stages"]] for row in rows]
    unit = "GiB" if max(map(max, peaks)) >= GIB else "MiB"
    for row, found in zip(rows, peaks, strict=True):
        cells = [f"{peak / _UNITS[unit.upper()]:.2f}" for peak in (*found, max(found))]
        lines.append(f"| {row['token_ratio']:g} | {row['order']} | {' | '.join(cells)} {unit} |")
    return "\n".join(lines)


def figure_1(config: SearchConfig, batches: Sequence[int] = BATCHES) -> dict[str, list[float]]:
    """The most GiB of any stage by batch: plain DARTS, its operations one by one or fused as ours
    are, and DASViT at λ = 1 and 0.5, first order."""
    first = replace(config, method=DASViT.like(config.method)).replaced(xi=0.0)
    darts = replace(first, method=DARTS.like(first.method))
    half = first.replaced(token_ratio=0.5)
    ways = {
        "plain DARTS, operation by operation": darts.replaced(fused=False),
        "plain DARTS, fused": darts,
        "DASViT, λ = 1": first.replaced(token_ratio=1.0),
        "DASViT, λ = 0.5": half,
        "DASViT, λ = 0.5, bf16, recomputed": half.replaced(
            precision="bf16", recompute=True, fused=True
        ),
    }

    def most(way: SearchConfig, batch: int) -> float:
        plans = plan_search(replace(way, batch_size=batch))
        return max(plan.peak for plan in plans) / GIB

    return {name: [most(way, batch) for batch in batches] for name, way in ways.items()}


def memory_figure(
    series: Mapping[str, Sequence[float]],
    batches: Sequence[int] = BATCHES,
    *,
    budget: float = 24.0,
    title: str | None = None,
) -> Figure:
    """Memory (GiB) against batch size, one line per way, and the budget as a dashed line."""
    figure = new_figure(7.2, 4.2, title)
    axes = figure.subplots()
    for name, values in series.items():
        axes.plot(batches, values, marker="o", label=name)
    axes.axhline(budget, color=FAINT, linestyle="--", zorder=0)
    axes.annotate(f"{budget:g} GiB", (batches[0], budget), (0, 4), textcoords="offset points")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(list(batches), [str(batch) for batch in batches])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="batch size", ylabel="planned peak memory (GiB)")
    axes.legend()
    return figure
