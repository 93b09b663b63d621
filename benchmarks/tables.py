"""Results of the benchmarks as Markdown tables, and the aims beside what was measured.

python benchmarks/tables.py docs/results/search_step_cpu.json
python benchmarks/tables.py docs/results/gpu       # all files of a folder, put together
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["aims", "markdown", "read", "tables"]

AIM_RATE, AIM_MEMORY, AIM_MINUTES = 0.5, 4.0, 20.0
"""Share of the products' rate at λ = 1; less memory at λ = 0.5; minutes of a whole search."""
Row = dict[str, Any]
STEP = "order, batch, stage, λ"


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table: the first column to the left, the others to the right; – where a row has
    nothing."""
    table = pd.DataFrame([*rows]).astype(object)
    cells = table.where(table.notna(), "–").astype(str).to_numpy().tolist()
    header, rule = [*table.columns], ["---", *["---:"] * (table.shape[1] - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *cells))


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of results in files and folders, with what each is of: see `_rows`.

    Raises:
        ValueError: there are none.
    """
    files = [f for p in paths for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    rows = [row for file in files for row in _rows(json.loads(file.read_text(encoding="utf-8")))]
    if not rows:
        raise ValueError("no results of these benchmarks there")
    return rows


def _rows(facts: Mapping[str, Any]) -> Iterator[Row]:
    """With `kind` (search_step, ablation, …), `on` (device), `commit`, `how` the step was taken and
    what it keeps of memory."""
    plan = facts.get("plan", {})
    named = {"compile": "compiled", "cuda_graph": "captured"}
    how = " and ".join(word for name, word in named.items() if plan.get(name))
    for row in facts.get("rows", ()):
        new: Row = {"kind": str(facts.get("schema")).split("/")[1], "how": how or "eager"}
        new |= {"on": facts["device"].get("name", "CPU")}
        new |= {"commit": str(facts["environment"]["git_commit"])}
        if "stage" in row:
            names = ("order", "batch_size", "stage", "token_ratio")
            new[STEP] = ", ".join(f"{row[name]:g}" for name in names)
            # A captured step keeps what its kernels work in; its peak is of a step before.
            new["memory"] = max(row.get("peak_bytes") or 0, row.get("held_bytes", 0))
        yield row | new


def _times(other: Row | None, row: Row, what: str) -> str | None:
    """How many times more `other` takes."""
    found = other is not None and other.get(what) and row.get(what)
    return f"{other[what] / row[what]:.2f}×" if found else None


def _ms(row: Row | None) -> str | None:
    if row is None:
        return None
    if row["status"] != "ok":
        return str(row["status"])
    return f"{1e3 * row['median_seconds']:.1f}" if "median_seconds" in row else None


def _mib(row: Row, what: str = "memory") -> str | None:
    return f"{row[what] / 2**20:.0f}" if row.get(what) else None


def _references(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    key = ("order", "batch_size", "stage", "token_ratio", "precision")
    return {tuple(r[k] for k in key): r for r in rows if r.get("variant") == "reference"}


def _compared(rows: list[Row]) -> Iterator[Row]:
    plain = _references(rows)
    for row in rows:
        if row["kind"] != "search_step" or row["variant"] != "ours":
            continue
        share = row.get("matmul_fraction")
        line = {STEP: row[STEP], "ours": f"{row['how']}, {row['precision']}", "ms": _ms(row)}
        line |= {"of the products' rate": share and f"{share:.1%}", "MiB": _mib(row)}
        for precision in dict.fromkeys(p for *_, p in plain):
            cell = row["order"], row["batch_size"], row["stage"]
            same, whole = (plain.get((*cell, r, precision)) for r in (row["token_ratio"], 1.0))
            line[f"reference {precision}, ms"] = _ms(same)
            line[f"{precision}: faster"] = _times(same, row, "median_seconds")
            line[f"{precision}: leaner"] = _times(same, row, "memory")
            line[f"{precision}: leaner than at λ = 1"] = _times(whole, row, "memory")
        yield line


def _methods(rows: list[Row]) -> Iterator[Row]:
    rows = [row for row in rows if row.get("variant") == "method"]
    plain = {row[STEP]: row for row in rows if row["method"] == "darts"}
    for row in rows:
        yield _beside(row, {"method": row["method"]}, plain[row[STEP]], "of DARTS'")


def _beside(row: Row, named: Row, base: Row, of: str) -> Row:
    """Time and memory of a step, and how many times those of another."""
    line = named | {STEP: row[STEP], "ms": _ms(row), "MiB": _mib(row)}
    for what, name in (("median_seconds", "time"), ("memory", "memory")):
        line[f"{name}, {of}"] = _times(row, base, what)
    return line


def _without(rows: list[Row]) -> Iterator[Row]:
    rows = [row for row in rows if row["kind"] == "ablation"]
    shipped = {row[STEP]: row for row in rows if row["variant"] == "as shipped"}
    for row in rows:
        yield _beside(row, {"a step": row["variant"]}, shipped[row[STEP]], "of shipped")


def _kinds(rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        if "kinds_ms" in row:
            line = {STEP: row[STEP], "way": f"{row['variant']}, {row['how']}", "a step": _ms(row)}
            parts = {"of the host": row["host_ms"]} | row["kinds_ms"]
            yield line | {name: f"{ms:.1f}" for name, ms in parts.items()}


def tables(rows: list[Row]) -> Iterator[str]:
    """A title and a table for each kind of result there is."""
    parts = {
        "A step beside the plain reference": [*_compared(rows)],
        "Without, or with, one measure": [*_without(rows)],
        "A step of each method": [*_methods(rows)],
        "Where the time of a step goes (ms)": [*_kinds(rows)],
        "Several at once": [
            {STEP: row[STEP], "way": row["how"], "processes": row["processes"]}
            | {"images per second": f"{row.get('images_per_second', 0):.0f}"}
            for row in rows
            if "processes" in row
        ],
        "Memory planned and measured (MiB)": [
            {STEP: row[STEP], "planned": _mib(row, "planned_bytes"), "measured": _mib(row)}
            for row in rows
            if "planned_bytes" in row
        ],
        "A whole search (minutes)": [
            {"evaluated every": row["evaluated_every"], "λ": row["token_ratio"], "way": row["how"]}
            | {name: f"{minutes:.1f}" for name, minutes in row["minutes"].items()}
            for row in rows
            if row["kind"] == "whole_search"
        ],
        "Tests": [{"test": r["test"], "": r["outcome"]} for r in rows if "outcome" in r],
    }
    for title, lines in parts.items():
        if lines:
            yield f"{title}\n\n{markdown(lines)}"


def aims(rows: list[Row]) -> str:
    """The aims on a GPU beside what was measured."""
    plain, lines = _references(rows), []

    def line(aim: str, row: Row, shown: str, reached: bool) -> None:
        words = {"aim": aim, STEP: row.get(STEP), "way": row["how"], "measured": shown}
        lines.append(words | {"reached": "yes" if reached else "no"})

    for row in rows:
        if row["kind"] == "whole_search":
            minutes = row["minutes"]["in all"]
            aim = f"a whole search within {AIM_MINUTES:g} minutes"
            line(aim, row, f"{minutes:.1f}", minutes <= AIM_MINUTES)
        ours = row.get("variant") == "ours" and row["status"] == "ok" and row["order"] == 1
        if not ours or row["how"] == "eager":
            continue
        if row["token_ratio"] == 1.0:
            share, aim = row["matmul_fraction"], "half of the products' rate at λ = 1"
            line(aim, row, f"{share:.1%}", share >= AIM_RATE)
        whole = plain.get((1, row["batch_size"], row["stage"], 1.0, "fp32"))
        if row["token_ratio"] == 0.5 and whole is not None:
            less, aim = whole["memory"] / row["memory"], "4 times less memory at λ = 0.5"
            line(aim, row, f"{less:.2f}×", less >= AIM_MEMORY)
    return markdown(sorted(lines, key=lambda words: words["aim"]))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    rows = read(map(Path, sys.argv[1:]))
    print(*sorted({f"{row['on']}, commit {row['commit']}" for row in rows}), sep="; ")
    print("", *tables(rows), sep="\n\n")
    if any(row["on"] != "CPU" for row in rows):
        print(f"\nThe aims on a GPU\n\n{aims(rows)}")


if __name__ == "__main__":
    main()
