"""Tables and pictures from the results of `search_step.py`.

    python benchmarks/render.py docs/results/search_step_cpu.json

Writes NAME.md, NAME.png and NAME.svg beside the file.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.command import run_command
from benchmarks.facts import memory_of, read_results
from dasvit.report.style import FAINT, FONT, INK, save_figure
from dasvit.run.files import write_atomic

__all__ = ["figure", "markdown"]

COLOURS = ("#4e79a7", "#e0803c", "#59a14f")
Row = dict[str, Any]


def _key(row: Row) -> tuple[int, int, int]:
    return row["order"], row["batch_size"], row["stage"]


def _find(rows: list[Row], variant: str, precision: str, key: tuple, ratio: float) -> Row | None:
    wanted = (variant, precision, ratio, key, "ok")
    for row in rows:
        what = (row["variant"], row["precision"], row["token_ratio"], _key(row), row["status"])
        if what == wanted:
            return row
    return None


def _times(row: Row | None, other: Row | None, what: str) -> float | None:
    """How many times more `other` takes than `row`."""
    return _value(other, what) / _value(row, what) if row and other else None


def _value(row: Row, what: str) -> float:
    return memory_of(row) if what == "peak_bytes" else row[what]


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def _ours(facts: dict[str, Any]) -> str:
    named = {"compile": "compiled", "cuda_graph": "captured"}
    return f"ours {' and '.join(w for n, w in named.items() if facts['plan'].get(n))}".strip()


def _before_capture(facts: dict[str, Any]) -> bool:
    """Whether the memory of captured steps is that of steps before."""
    ours = [row for row in facts["rows"] if (row["variant"], row["status"]) == ("ours", "ok")]
    return bool(facts["plan"].get("cuda_graph")) and any("held_bytes" not in row for row in ours)


def _measured(facts: dict[str, Any]) -> list[str]:
    """Time and memory, or what of them the rows have."""
    return [w for w in ("median_seconds", "peak_bytes") if any(w in row for row in facts["rows"])]


def steps_table(facts: dict[str, Any], what: str) -> str:
    """Ours beside the reference, in time or in memory.

    Args:
        what: "median_seconds" or "peak_bytes".
    """
    rows, own = facts["rows"], facts["plan"]["precision"]
    time = what == "median_seconds"
    unit, scale, word = ("ms", 1e3, "faster") if time else ("MiB", 2**-20, "leaner")
    plain = list(dict.fromkeys(["fp32", own]))
    way = _ours(facts)
    header = ["order, batch, stage, λ", f"{way} {own} ({unit})"]
    for p in plain:
        header += [f"reference {p} ({unit})", word, f"{word} than at λ = 1"]
    if time:
        header += ["ours: images/s", "ours: of the products' rate", "reference fp32"]
    lines = []
    for key, ratio in sorted(
        {(_key(r), r["token_ratio"]) for r in rows}, key=lambda k: (k[0], -k[1])
    ):
        cell = [r for r in rows if (_key(r), r["token_ratio"]) == (key, ratio)]
        states = {(r["variant"], r["precision"]): r["status"] for r in cell}
        ours = _find(rows, "ours", own, key, ratio)
        name = f"{key[0]}, {key[1]}, {key[2]}, {ratio:g}"
        line = [name, _shown(ours, what, scale, states.get(("ours", own)))]
        for p in plain:
            other = _find(rows, "reference", p, key, ratio)
            line += [
                _shown(other, what, scale, states.get(("reference", p))),
                _number(_times(ours, other, what), 2, "×"),
                _number(_times(ours, _find(rows, "reference", p, key, 1.0), what), 2, "×"),
            ]
        if time:
            other = _find(rows, "reference", "fp32", key, ratio)
            line.append(f"{ours['images_per_second']:.0f}" if ours else "–")
            line += [f"{100 * r['matmul_fraction']:.0f} %" if r else "–" for r in (ours, other)]
        lines.append(line)
    return _table(header, lines)


def _shown(row: Row | None, what: str, scale: float, status: str | None) -> str:
    return (
        (status or "–") if row is None else f"{scale * _value(row, what):.{1 if scale > 1 else 0}f}"
    )


def ablation_table(ways: dict[str, Row]) -> str:
    """Time and memory without each measure, beside the step as shipped."""
    lines = []
    shipped = ways.get("as shipped", {})
    base = shipped if shipped.get("status") == "ok" else None
    for name, row in ways.items():
        if row["status"] != "ok":
            lines.append([name, row["status"], "–", "–", "–", "–"])
            continue
        lines.append(
            [
                name,
                f"{1e3 * row['median_seconds']:.1f}",
                _number(_times(base, row, "median_seconds"), 2, "×"),
                f"{memory_of(row) / 2**20:.0f}",
                _number(_times(base, row, "peak_bytes"), 2, "×"),
                f"{row['start_seconds']:.1f}",
            ]
        )
    header = ["step", "time (ms)", "of shipped", "peak (MiB)", "of shipped", "first step (s)"]
    return _table(header, lines)


def markdown(facts: dict[str, Any]) -> str:
    """The page of a results file."""
    environment, device, plan = facts["environment"], facts["device"], facts["plan"]
    sizes, threads = plan["sizes"], device["threads"]
    if "name" in device:
        machine = device["name"]
    elif _measured(facts) == ["peak_bytes"]:
        machine = "Counted on tensors without data"
    else:
        clock = {"wall": "wall time", "cpu": "processor time"}[plan["clock"]]
        machine = (
            f"{environment['cpu_count']}-core CPU, {threads} thread{'s' * (threads > 1)}, {clock}"
        )
    commit, *changed = (environment["git_commit"] or "unknown").partition("-")
    by_hand = " (named by hand)" * (len(commit) < 40 and commit != "unknown")  # git tells it whole
    commit = "".join([commit[:7], *changed, by_hand])
    parts = [
        f"`{facts['command']}`",
        f"{machine}, torch {environment['packages']['torch']}, Python {environment['python']}, "
        f"commit {commit}, {facts['date']}. Width {sizes['dim']}, images of "
        f"{sizes['image_size']}, patches of {sizes['patch_size']}.",
        *(steps_table(facts, what) for what in _measured(facts)),
    ]
    if _before_capture(facts):
        parts.append(
            "Memory of ours is that of a step before its capture; what a graph holds is more."
        )
    for a in facts["ablation"]:
        parts += [
            f"Without one measure at a time: stage {a['stage']}, λ = {a['token_ratio']:g}, batch "
            f"{a['batch_size']}, order {a['order']}.",
            ablation_table(a["ways"]),
        ]
    if "projection" in facts:
        p, data = facts["projection"], facts["data"]
        parts.append(
            f"A whole search of these sizes on CIFAR-10's shapes, batch {p['batch_size']}, λ = "
            f"{p['token_ratio']:g}: {p['minutes']:.1f} minutes projected "
            f"({p['steps_an_epoch']} steps an epoch, {p['epochs_a_stage']} epochs a stage"
            f"{_ends(p)}). The "
            f"two batches of a step take {1e3 * data['ours']:.1f} ms on the device, "
            f"{1e3 * data['loader']:.1f} ms from a DataLoader of {data['workers']} workers."
        )
    if "processes" in facts:
        lines = [
            [str(r["processes"]), _number(r.get("images_per_second"), 0), r["status"]]
            for r in facts["processes"]["rows"]
        ]
        parts.append(_table(["processes at once", "images/s in all", "state"], lines))
    if facts["skipped"]:
        parts.append("Left out for lack of time: " + "; ".join(facts["skipped"]) + ".")
    return "\n\n".join(parts) + "\n"


def _ends(projection: dict[str, Any]) -> str:
    """What else is in the minutes."""
    if "minutes_sparse" not in projection:
        return "; without checkpoints, and the plan before the search"
    return (
        f"; an evaluation and a checkpoint after each, {projection['minutes_sparse']:.1f} minutes "
        f"with one in {projection['sparse_epochs']}"
    )


def figure(facts: dict[str, Any]) -> Figure:
    """How much faster and leaner ours is than the reference at the same λ, and at λ = 1."""
    rows, own = facts["rows"], facts["plan"]["precision"]
    orders = sorted({row["order"] for row in rows})
    labels = {"median_seconds": "times faster", "peak_bytes": "times less memory"}
    if _before_capture(facts):
        labels["peak_bytes"] += "\n(before the capture)"
    whats = {what: labels[what] for what in _measured(facts)}
    size = (4.6 * len(orders) + 0.6, 2.9 * len(whats))
    drawn = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = drawn.subplots(len(whats), len(orders), squeeze=False, sharey="row")
    for line, (what, label) in zip(panels, whats.items(), strict=True):
        for axes, order in zip(line, orders, strict=True):
            _bars(axes, rows, own, order, what)
            axes.set_title({1: "first order", 2: "second order"}[order], size=10, family=FONT)
        line[0].set_ylabel(label, size=10, family=FONT, color=INK)
    handles, labels = panels[0][0].get_legend_handles_labels()
    drawn.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        prop={"family": FONT, "size": 8},
    )
    between = "\n" if len(orders) == 1 else " "  # one panel is narrow
    title = f"{_ours(facts).capitalize()} in {own}{between}against the reference at λ = 1"
    drawn.suptitle(title, size=11, family=FONT, color=INK)
    return drawn


def _bars(axes: Axes, rows: list[Row], own: str, order: int, what: str) -> None:
    keys = sorted({_key(row) for row in rows if row["order"] == order})
    ratios = sorted({row["token_ratio"] for row in rows}, reverse=True)
    precisions = list(dict.fromkeys(["fp32", own]))
    bars = [(r, p) for p in precisions for r in ratios]
    width = 0.8 / len(bars)
    for number, (ratio, precision) in enumerate(bars):
        heights = []
        for key in keys:
            ours = _find(rows, "ours", own, key, ratio)
            heights.append(_times(ours, _find(rows, "reference", precision, key, 1.0), what) or 0.0)
        places = [i + (number + 0.5) * width - 0.4 for i in range(len(keys))]
        drawn = axes.bar(
            places,
            heights,
            width,
            color=COLOURS[ratios.index(ratio) % len(COLOURS)],
            alpha=1.0 if precision == "fp32" else 0.55,
            label=f"ours at λ = {ratio:g}, reference in {precision}",
        )
        texts = [f"{h:.2f}" if h else "" for h in heights]
        axes.bar_label(drawn, texts, size=7, color=INK, family=FONT)
    axes.axhline(1, color=FAINT, linewidth=0.8, zorder=0)
    names = [f"stage {stage}\nbatch {batch}" for _, batch, stage in keys]
    axes.set_xticks(range(len(keys)), names, size=8 if len(keys) < 5 else 6, family=FONT)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.12)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main(argv: list[str]) -> None:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise ValueError("give one results file: python benchmarks/render.py FILE.json")
    path = Path(argv[0])
    facts = read_results(path)
    write_atomic(path.with_suffix(".md"), markdown(facts))
    if any(row["status"] == "ok" for row in facts["rows"]):
        save_figure(figure(facts), path.with_suffix(""))


if __name__ == "__main__":
    run_command(main)
