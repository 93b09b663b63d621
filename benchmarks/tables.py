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
Facts = Mapping[str, Any]
Row = dict[str, Any]


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table: the first column to the left, the others to the right; – where a row has
    nothing."""
    table = pd.DataFrame([*rows]).astype(object)
    cells = table.where(table.notna(), "–").astype(str).to_numpy().tolist()
    header, rule = [*table.columns], ["---", *["---:"] * (table.shape[1] - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *cells))


def read(paths: Iterable[Path]) -> list[Facts]:
    """Results in files and folders.

    Raises:
        ValueError: there are none.
    """
    files = [f for p in paths for f in (sorted(p.glob("*.json")) if p.is_dir() else [p])]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found = [facts for facts in found if "dasvit/" in str(facts.get("schema"))]
    if not found:
        raise ValueError("no results of these benchmarks there")
    return found


def _rows(results: Iterable[Facts], *schemas: str) -> list[Row]:
    """Rows with how their step was taken, what it is and the memory that it takes."""
    found = []
    for facts in results:
        if facts["schema"].split("/")[1] in schemas:
            plan = facts.get("plan", {})
            named = {"compile": "compiled", "cuda_graph": "captured"}
            how = [word for name, word in named.items() if plan.get(name)]
            for row in facts["rows"]:
                step = f"{row['order']}, {row['batch_size']}, {row['stage']}, "
                new = {"how": " and ".join(how) or "eager", "step": f"{step}{row['token_ratio']:g}"}
                # A captured step keeps what its kernels work in; its peak is of a step before.
                memory = max(row.get("peak_bytes") or 0, row.get("held_bytes", 0))
                found.append(row | new | {"memory": memory})
    return found


def _times(other: Row | None, row: Row, what: str) -> str | None:
    """How many times more `other` takes."""
    found = other is not None and other.get(what) and row.get(what)
    return f"{other[what] / row[what]:.2f}×" if found else None


def _ms(row: Row | None) -> str | None:
    if row is None:
        return None
    return f"{1e3 * row['median_seconds']:.1f}" if "median_seconds" in row else row["status"]


def _mib(row: Row) -> str | None:
    return f"{row['memory'] / 2**20:.0f}" if row["memory"] else None


def _references(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    key = ("order", "batch_size", "stage", "token_ratio", "precision")
    return {tuple(r[k] for k in key): r for r in rows if r["variant"] == "reference"}


def _compared(rows: list[Row]) -> Iterator[Row]:
    plain = _references(rows)
    for row in (r for r in rows if r["variant"] == "ours"):
        line = {"order, batch, stage, λ": row["step"], "ours": f"{row['how']}, {row['precision']}"}
        share = row.get("matmul_fraction")
        line |= {"ms": _ms(row), "of the products' rate": share and f"{share:.1%}"}
        line |= {"MiB": _mib(row)}
        for precision in dict.fromkeys(p for *_, p in plain):
            cell = row["order"], row["batch_size"], row["stage"]
            same, whole = (plain.get((*cell, r, precision)) for r in (row["token_ratio"], 1.0))
            line[f"reference {precision}, ms"] = _ms(same)
            line[f"{precision}: faster"] = _times(same, row, "median_seconds")
            line[f"{precision}: leaner"] = _times(same, row, "memory")
            line[f"{precision}: leaner than at λ = 1"] = _times(whole, row, "memory")
        yield line


def _without(rows: list[Row]) -> Iterator[Row]:
    shipped = {r["step"]: r for r in rows if r["variant"] == "as shipped"}
    for row in rows:
        base, line = shipped[row["step"]], {"step": row["variant"], "λ": f"{row['token_ratio']:g}"}
        line |= {"order": row["order"], "ms": _ms(row), "MiB": _mib(row)}
        yield line | {
            "time, of shipped": _times(row, base, "median_seconds"),
            "memory, of shipped": _times(row, base, "memory"),
        }


def tables(results: list[Facts]) -> Iterator[str]:
    """A title and a table for each kind of result there is."""
    rows = _rows(results, "search_step")
    parts = {
        "A step beside the plain reference": [*_compared(rows)],
        "Without, or with, one measure": [*_without(_rows(results, "ablation"))],
        "Where a step's time goes (ms)": [
            {"order, batch, stage, λ": r["step"], "way": f"{r['how']} {r['variant']}"}
            | {"a step": _ms(r), "of the host": r.get("host_ms") and f"{r['host_ms']:.1f}"}
            | {kind: f"{part['ms']:.1f}" for kind, part in r["kinds"].items()}
            for r in rows
            if "kinds" in r
        ],
        "Several at once (images per second)": [
            {"order, batch, stage, λ": r["step"], "processes": r["variant"], "way": r["how"]}
            | {"in all": f"{r.get('images_per_second', 0):.0f}", "status": r["status"]}
            for r in rows
            if "at once" in r["variant"]
        ],
        "The plan of memory (MiB)": [
            {"order, batch, stage, λ": r["step"], "planned": f"{r['planned_bytes'] / 2**20:.0f}"}
            | {
                "measured": _mib(r),
                "planned, of measured": r["memory"] and f"{r['planned_bytes'] / r['memory']:.3f}×",
            }
            for r in rows
            if "planned_bytes" in r
        ],
        "A whole search (minutes)": [
            {"λ": f"{f['token_ratio']:g}", "every epoch": f"{f['minutes']:.1f}"}
            | {"every tenth": f"{f['minutes_sparse']:.1f}"}
            | {name: f"{minutes:.1f}" for name, minutes in f["parts_minutes"].items()}
            for f in results
            if "whole_search" in f["schema"]
        ],
    }
    for title, lines in parts.items():
        if lines:
            yield f"{title}\n\n{markdown(lines)}"


def aims(results: list[Facts]) -> str:
    """The aims on a GPU beside what was measured."""
    rows = [r for r in _rows(results, "search_step") if r["status"] == "ok" and r["order"] == 1]
    ours = [r for r in rows if r["variant"] == "ours" and r["how"] != "eager"]
    plain = _references(rows)
    lines = []
    for row in ours:
        if row["token_ratio"] == 1.0:
            share, aim = row["matmul_fraction"], "half of the products' rate at λ = 1"
            lines.append((aim, row["step"], row["how"], f"{share:.1%}", share >= AIM_RATE))
        whole = plain.get((1, row["batch_size"], row["stage"], 1.0, "fp32"))
        if row["token_ratio"] == 0.5 and whole is not None:
            less, aim = whole["memory"] / row["memory"], "4 times less memory at λ = 0.5"
            lines.append((aim, row["step"], row["how"], f"{less:.2f}×", less >= AIM_MEMORY))
    for facts in (f for f in results if "whole_search" in f["schema"]):
        minutes, aim = facts["minutes_sparse"], "a whole search within 20 minutes"
        lines.append((aim, "", facts["how"], f"{minutes:.1f}", minutes <= AIM_MINUTES))
    names = ("aim", "order, batch, stage, λ", "way", "measured", "reached")
    return markdown(
        dict(zip(names, (*line[:4], "yes" if line[4] else "no"), strict=True))
        for line in sorted(lines)
    )


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return
    results = read(map(Path, sys.argv[1:]))
    machines = {f["device"].get("name", "CPU") for f in results}
    commits = {str(f["environment"]["git_commit"]) for f in results}
    print(f"{', '.join(sorted(machines))}; commit {', '.join(sorted(commits))}\n")
    print(*tables(results), sep="\n\n")
    if any(f["device"]["kind"] == "cuda" for f in results):
        print(f"\nThe aims on a GPU\n\n{aims(results)}")


if __name__ == "__main__":
    main()
