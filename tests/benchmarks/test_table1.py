"""Table I: the known counts of every network, the paper's figures, and which result fills what."""

import re
from pathlib import Path

import pytest
from support.finished import finished
from support.table1_counts import COUNTED

from benchmarks.table1 import DATASETS, ROWS, CountedRow, count_rows, difference, fill_cells
from benchmarks.table1_results import find_runs, group_runs

# Million parameters and billion multiply-adds, linear and convolution layers, and with attention
# products: the paper's table where it is right, and by arithmetic.
KNOWN = {
    "VGG-16": (134.7, 15.5, 15.5),
    "VGG-19": (140.0, 19.6, 19.6),
    "ResNet-50": (23.7, 4.1, 4.1),
    "ResNet-152": (58.3, 11.5, 11.5),
    "EfficientNet-B7": (64.0, 5.2, 5.2),
    "RegNetY-12GF": (49.8, 12.1, 12.1),
    "RegNetY-16GF": (80.9, 15.9, 15.9),
    "ViT-B/16": (85.8, 16.85, 17.6),
    "TNT-B": (64.9, 13.40, 14.0),
    "CaiT-S36": (67.9, 12.84, 13.9),
    "AutoFormer-B": (53.17, 10.40, 11.43),
    "DASViT": (50.4, 9.876, 10.591),
}


@pytest.fixture(scope="module")
def counted() -> list[CountedRow]:
    return count_rows()


def test_every_row_has_its_known_counts(counted: list[CountedRow]) -> None:
    assert [c.row.name for c in counted] == list(KNOWN)
    for c in counted:
        params, linear, total = KNOWN[c.row.name]
        assert c.found.num_params / 1e6 == pytest.approx(params, rel=0.01), c.row.name
        assert c.found.macs_linear / 1e9 == pytest.approx(linear, rel=0.01), c.row.name
        assert c.found.macs_total / 1e9 == pytest.approx(total, rel=0.01), c.row.name


def test_what_differs_from_the_paper(counted: list[CountedRow]) -> None:
    assert {c.row.name: c.fits for c in counted if c.fits != "both"} == {
        "ViT-B/16": "neither",
        "TNT-B": "linear",
        "CaiT-S36": "linear",
        "AutoFormer-B": "neither",
        "DASViT": "linear",
    }
    beyond = [c.row.name for c in counted if abs(c.params_difference) > 0.01]
    assert beyond == ["AutoFormer-B"]


def test_the_counts_that_other_tests_use(counted: list[CountedRow]) -> None:
    for c, known in zip(counted, COUNTED, strict=True):
        assert c.row == known.row
        for name in ("num_params", "macs_linear", "macs_total"):
            ours = getattr(known.found, name)
            assert getattr(c.found, name) == pytest.approx(ours, rel=1e-3), c.row.name


def test_what_the_notes_say(counted: list[CountedRow]) -> None:
    of = {c.row.name: c for c in counted}
    vit, dasvit, autoformer = (of[n] for n in ("ViT-B/16", "DASViT", "AutoFormer-B"))
    assert "saves 41 %" in vit.row.note
    assert 1 - dasvit.found.macs_linear / vit.found.macs_linear == pytest.approx(0.41, abs=5e-3)
    literal = (autoformer.found.macs_linear + 4 * 197**2 * 64 * 130) / 1e9
    assert f"{literal:.2f} G ({difference(literal, 11.6):+.1%})".replace("%", " %") in (
        autoformer.row.note
    )


def test_the_figures_are_the_papers() -> None:
    """Rows that the paper's text quotes, and ranges that a slip of the hand would leave."""
    of = {row.name: row for row in ROWS}
    assert (of["DASViT"].params, of["DASViT"].macs) == (50.4, 9.9)
    assert of["DASViT"].accuracy == {
        "cifar10": (80.1, 98.4),
        "cifar100": (54.4, 78.5),
        "imagenet100": (46.8, 72.3),
    }
    assert of["ViT-B/16"].accuracy["imagenet100"] == (39.7, 66.1)
    assert of["AutoFormer-B"].accuracy["cifar100"] == (47.1, 73.4)
    for row in ROWS:
        assert list(row.accuracy) == list(DATASETS)
        assert all(30 < top1 < top5 < 100 for top1, top5 in row.accuracy.values())
        assert row.accuracy["cifar10"][0] > 70 and row.accuracy["cifar100"][0] < 60
    assert len({row.model for row in ROWS}) == len(ROWS) == 12


def test_progress_is_told() -> None:
    told: list[str] = []
    (one,) = count_rows(10, [row for row in ROWS if row.name == "ResNet-50"], told.append)
    assert told == ["ResNet-50"]
    assert one.found.num_params < next(
        c.found.num_params for c in COUNTED if c.row.name == "ResNet-50"
    )


def test_results_fill_the_cells_of_their_network_and_data_set(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path / f"r{seed}", "resnet50", "cifar100", seed=seed)
    finished(tmp_path / "d10", "dasvit_cifar10", "cifar10")
    finished(tmp_path / "d100", "dasvit_imagenet100", "imagenet100")
    finished(tmp_path / "vit", "vit", "cifar10")
    cells, others = fill_cells(group_runs(find_runs([tmp_path])))
    assert {key: scores.seeds for key, scores in cells.items()} == {
        ("ResNet-50", "cifar100"): (0, 1),
        ("DASViT", "cifar10"): (0,),
        ("DASViT", "imagenet100"): (0,),
        ("ViT-B/16", "cifar10"): (0,),
    }
    assert others == []


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "resnet50", "image_size": 32, "patch_size": 4},
        {"model": "resnet18"},
        {"model": "resnet50", "dataset": "digits"},
        {"model": "dasvit_cifar10", "dim": 384},
        {"model": "dasvit_cifar10", "depth": 6},
        {"model": "dasvit_imagenet100", "dataset": "cifar10"},  # found elsewhere
        {"model": "vit", "vit_heads": 8},
    ],
    ids=str,
)
def test_what_is_not_the_rows_network_fills_nothing(tmp_path: Path, changes: dict) -> None:
    finished(tmp_path / "a", **changes)
    cells, others = fill_cells(group_runs(find_runs([tmp_path])))
    assert cells == {}
    assert [scores.runs[0].folder.name for scores in others] == ["a"]


def test_two_recipes_are_not_averaged(tmp_path: Path) -> None:
    finished(tmp_path / "long", "resnet50", seed=0)
    finished(tmp_path / "short", "resnet50", seed=1, epochs=30, lr=0.01)
    scores = group_runs(find_runs([tmp_path]))
    with pytest.raises(ValueError, match=re.escape("(they differ in epochs, lr)")) as refused:
        fill_cells(scores)
    assert "ResNet-50 on CIFAR-10" in str(refused.value)
