"""Table I as Markdown, CSV and values for JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.table1 import DATASETS, CountedRow, beyond
from benchmarks.table1_results import Scores

__all__ = ["to_csv", "to_markdown", "to_values"]

NOT_RUN = "not run"
Cells = Mapping[tuple[str, str], Scores]


def _percent(ratio: float) -> str:
    """`+0.3 %`; bold over 1 %."""
    percent = round(100 * ratio, 1)
    text = f"{percent:+.1f} %" if percent else "0.0 %"
    return f"**{text}**" if beyond(ratio) else text


def _accuracy(value: tuple[float, float | None]) -> str:
    mean, std = value
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"


def _scores(scores: Scores | None) -> str:
    if scores is None:
        return NOT_RUN
    count = len(scores.runs)
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    return f"{_accuracy(scores.top1)} / {_accuracy(scores.top5)} ({seeds})"


def _recipe(scores: Scores) -> str:
    config = scores.runs[0].config
    seeds = ", ".join(map(str, scores.seeds))
    folders = ", ".join(str(run.folder) for run in scores.runs)
    return (
        f"{config.epochs} epochs, batch {config.batch_size}, learning rate {config.lr:g}; "
        f"seed {seeds}; {folders}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if name in ("network", "design") else "---:" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def to_markdown(
    counted: Sequence[CountedRow], cells: Cells, others: Sequence[Scores], num_classes: int
) -> str:
    """The counts, the accuracies, what filled them, and what belongs to no row."""
    parts = [
        f"Parameters (M) and multiply-adds (G, one image of 224 × 224) at {num_classes} classes; "
        "bold: over 1 % from the paper.",
        _counts(counted),
        "\n".join(f"- {c.row.name}: {c.row.note}" for c in counted if c.row.note),
        "Test accuracy, top-1 / top-5 in percent; mean ± standard deviation over seeds.",
        _accuracies(counted, cells),
    ]
    if cells:
        lines = [
            f"- {name}, {DATASETS[dataset]}: {_recipe(scores)}"
            for (name, dataset), scores in cells.items()
        ]
        parts.append("Filled from:\n\n" + "\n".join(lines))
    if others:
        lines = []
        for scores in others:
            config = scores.runs[0].config
            size = config.data.image_size
            lines.append(
                f"- {config.model}, {config.data.dataset} at {size} × {size}: {_scores(scores)}; "
                f"{_recipe(scores)}"
            )
        parts.append("Results of other networks, sizes or data sets:\n\n" + "\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def _counts(counted: Sequence[CountedRow]) -> str:
    header = [
        "network", "design", "parameters: paper", "here", "Δ", "multiply-adds: paper",
        "linear and convolution layers", "Δ", "with attention products", "Δ", "the paper's is",
    ]  # fmt: skip
    return _table(
        header,
        [
            [
                c.row.name,
                c.row.design,
                f"{c.row.params:.1f}",
                f"{c.found.num_params / 1e6:.1f}",
                _percent(c.params_difference),
                f"{c.row.macs:.1f}",
                f"{c.found.macs_linear / 1e9:.2f}",
                _percent(c.linear_difference),
                f"{c.found.macs_total / 1e9:.2f}",
                _percent(c.total_difference),
                "**neither**" if c.fits == "neither" else c.fits,
            ]
            for c in counted
        ],
    )


def _accuracies(counted: Sequence[CountedRow], cells: Cells) -> str:
    header = ["network"]
    for name in DATASETS.values():
        header += [f"{name}: paper", "here"]
    rows = []
    for c in counted:
        line = [c.row.name]
        for dataset in DATASETS:
            top1, top5 = c.row.accuracy[dataset]
            line += [f"{top1:.1f} / {top5:.1f}", _scores(cells.get((c.row.name, dataset)))]
        rows.append(line)
    return _table(header, rows)


def to_values(counted: Sequence[CountedRow], cells: Cells) -> list[dict[str, Any]]:
    """A dictionary a row, flat, for CSV and JSON: counts are whole numbers, the paper's as printed
    (M, G), differences ratios, accuracies percent; None where nothing was run."""
    return [_values(c, cells) for c in counted]


def _values(c: CountedRow, cells: Cells) -> dict[str, Any]:
    values: dict[str, Any] = {
        "network": c.row.name,
        "model": c.row.model,
        "design": c.row.design,
        "params_m_paper": c.row.params,
        "params": c.found.num_params,
        "params_difference": c.params_difference,
        "macs_g_paper": c.row.macs,
        "macs_linear": c.found.macs_linear,
        "macs_linear_difference": c.linear_difference,
        "macs_total": c.found.macs_total,
        "macs_total_difference": c.total_difference,
        "papers_count_is": c.fits,
        "marked": beyond(c.params_difference) or c.fits == "neither",
    }
    for dataset in DATASETS:
        scores = cells.get((c.row.name, dataset))
        for i, top in enumerate(("top1", "top5")):
            mean, std = (None, None) if scores is None else (scores.top1, scores.top5)[i]
            values[f"{dataset}_{top}_paper"] = c.row.accuracy[dataset][i]
            values[f"{dataset}_{top}"] = None if mean is None else 100 * mean
            values[f"{dataset}_{top}_std"] = None if std is None else 100 * std
        values[f"{dataset}_seeds"] = 0 if scores is None else len(scores.runs)
    return values | {"note": c.row.note}


def to_csv(counted: Sequence[CountedRow], cells: Cells) -> str:
    """A line a row under a line of names; empty where nothing was run."""
    rows = to_values(counted, cells)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
