"""Table I as Markdown, CSV and JSON, as the command prints it, and the page that shows it."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.finished import finished
from support.table1_counts import COUNTED

import benchmarks.table1_command
from benchmarks.table1 import DATASETS, CountedRow, Row, fill_cells
from benchmarks.table1_report import to_csv, to_markdown, to_values
from benchmarks.table1_results import find_runs, group_runs
from dasvit.cli import main
from dasvit.costs import Complexity

ROOT = Path(__file__).parents[2]


@pytest.fixture
def print_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """The command's output and its progress; the counts are taken as known."""

    def count(num_classes: int, progress: Callable[[str], None]) -> list[CountedRow]:
        progress("ResNet-50")
        return COUNTED

    monkeypatch.setattr(benchmarks.table1_command, "count_rows", count)

    def run(*argv: str) -> tuple[str, str]:
        capsys.readouterr()
        main([*argv])
        return capsys.readouterr()

    return run


def lines_of(text: str, name: str) -> list[list[str]]:
    """The cells of every table line of a network."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(f"| {name} |")
    ]


def test_counts_stand_beside_the_papers_and_accuracies_are_not_run(
    print_table: Callable[..., tuple[str, str]],
) -> None:
    out, err = print_table()
    counts, accuracies = lines_of(out, "DASViT")
    assert counts == [
        *("DASViT", "auto", "50.4", "50.5", "+0.2 %", "9.9", "9.88", "-0.2 %"),
        *("10.59", "**+7.0 %**", "linear"),
    ]
    assert accuracies == [
        *("DASViT", "80.1 / 98.4", "not run", "54.4 / 78.5", "not run", "46.8 / 72.3", "not run")
    ]
    assert out.count("not run") == 3 * 12
    assert err == "counting ResNet-50 …\n"
    for table in out.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_what_is_over_one_percent_is_marked_and_nothing_else(
    print_table: Callable[..., tuple[str, str]],
) -> None:
    out, _ = print_table()
    marked = {
        cells[0][0]: [cell for cell in cells[0] if cell.startswith("**")]
        for c in COUNTED
        if (cells := lines_of(out, c.row.name)) and "**" in "".join(cells[0])
    }
    assert marked == {
        "ViT-B/16": ["**+40.4 %**", "**+46.4 %**", "**neither**"],
        "TNT-B": ["**+4.1 %**"],
        "CaiT-S36": ["**+7.8 %**"],
        "AutoFormer-B": ["**+1.3 %**", "**-10.4 %**", "**-1.4 %**", "**neither**"],
        "DASViT": ["**+7.0 %**"],
    }


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (101_000_000, "+1.0 %"),
        (101_010_000, "**+1.0 %**"),
        (98_000_000, "**-2.0 %**"),
        (99_999_999, "0.0 %"),
    ],
)
def test_the_mark_begins_at_one_percent(params: int, shown: str) -> None:
    row = Row(name="x", design="manual", model="x", params=100.0, macs=1.0,
              accuracy=dict.fromkeys(DATASETS, (1.0, 2.0)))  # fmt: skip
    found = Complexity(num_params=params, macs_linear=10**9, macs_attention=0)
    text = to_markdown([CountedRow(row=row, found=found)], {}, [], 100)
    assert lines_of(text, "x")[0][4] == shown


def test_results_fill_the_table(
    tmp_path: Path, print_table: Callable[..., tuple[str, str]]
) -> None:
    for seed, top1 in ((0, 0.812), (1, 0.822), (2, 0.802)):
        finished(tmp_path / f"r{seed}", "resnet50", seed=seed, top1=top1, top5=0.98, epochs=30)
    finished(tmp_path / "one", "dasvit_cifar10", "cifar100", top1=0.5, top5=0.75)
    finished(tmp_path / "digits", "vit", "digits", image_size=8, dim=48, patch_size=2, top1=0.9)
    out, _ = print_table("--results", str(tmp_path))
    assert lines_of(out, "ResNet-50")[1][1:4] == [
        *("81.5 / 98.7", "81.2 ± 1.0 / 98.0 ± 0.0 (3 seeds)", "52.4 / 80.7")
    ]
    assert lines_of(out, "DASViT")[1][4] == "50.0 / 75.0 (1 seed)"
    assert "- ResNet-50, CIFAR-10: 30 epochs, batch 128, learning rate 0.001; seed 0, 1, 2; " in out
    assert str(tmp_path / "r2") in out
    assert "- vit, digits at 8 × 8: 90.0 / 90.0 (1 seed); " in out
    assert out.count("not run") == 3 * 12 - 2


def test_csv_and_json_hold_all(tmp_path: Path, print_table: Callable[..., tuple[str, str]]) -> None:
    for seed, top1 in ((0, 0.7), (1, 0.9)):
        finished(tmp_path / str(seed), "resnet50", seed=seed, top1=top1, top5=0.98)
    finished(tmp_path / "other", "resnet18")
    out, _ = print_table("--json", "--results", str(tmp_path))
    values: dict[str, Any] = json.loads(out)
    assert (values["num_classes"], values["image_size"]) == (100, 224)
    assert "torch" in values["environment"]["packages"]
    assert [one["model"] for one in values["other_results"]] == ["resnet18"]
    of = {row["network"]: row for row in values["rows"]}
    assert list(of) == [c.row.name for c in COUNTED]
    resnet, vit = of["ResNet-50"], of["ViT-B/16"]
    assert resnet["cifar10_top1"] == pytest.approx(80)
    assert resnet["cifar10_top1_std"] == pytest.approx(100 * 0.02**0.5)
    assert (resnet["cifar10_top1_paper"], resnet["cifar10_seeds"]) == (81.5, 2)
    assert (resnet["cifar100_top1"], resnet["cifar100_seeds"]) == (None, 0)
    assert (vit["papers_count_is"], vit["marked"], resnet["marked"]) == ("neither", True, False)

    out, _ = print_table("--csv", "--results", str(tmp_path))
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["network"] for row in table] == list(of)
    for line in table:
        for name, text in line.items():
            value = of[line["network"]][name]
            assert text == ("" if value is None else str(value)), name


def test_json_values_are_the_markdowns_source(tmp_path: Path) -> None:
    finished(tmp_path / "a", "vgg16", "imagenet100", top1=0.333, top5=0.6)
    cells, _ = fill_cells(group_runs(find_runs([tmp_path])))
    (vgg,) = [row for row in to_values(COUNTED, cells) if row["network"] == "VGG-16"]
    assert vgg["imagenet100_top1"] == pytest.approx(33.3)
    assert to_csv(COUNTED, cells).count("33.3") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--json", "--csv"], "--json and --csv exclude each other"),
        (["--num-classes", "0"], "--num-classes must be 1 to 1000000, but got 0"),
        (["--results", "missing"], "there is no folder missing"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*argv])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_the_page_shows_what_the_command_prints(
    print_table: Callable[..., tuple[str, str]],
) -> None:
    out, _ = print_table()
    page = (ROOT / "docs" / "table1.md").read_text(encoding="utf-8")
    for block in out.strip().split("\n\n"):
        assert block in page
