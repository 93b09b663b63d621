"""The paper's Table I: our counts of its networks, and which results fill which cell."""

import json
from pathlib import Path

import pandas as pd
import pytest
from support.finished import finished

from benchmarks import table1
from benchmarks.table1 import DATASETS, beside, count, fill_cells, find_runs, paper

# Parameters, multiply-adds of weights, and with attention products, at 100 classes.
COUNTS = {
    "VGG-16": (134_670_244, 15_466_577_920, 15_466_577_920),
    "VGG-19": (139_979_940, 19_628_376_064, 19_628_376_064),
    "ResNet-50": (23_712_932, 4_087_341_056, 4_087_341_056),
    "ResNet-152": (58_348_708, 11_511_783_424, 11_511_783_424),
    "EfficientNet-B7": (64_043_060, 5_167_561_152, 5_167_561_152),
    "RegNetY-12GF": (49_805_644, 12_090_360_576, 12_090_360_576),
    "RegNetY-16GF": (80_867_640, 15_908_788_672, 15_908_788_672),
    "ViT-B/16": (85_875_556, 16_847_809_536, 17_563_137_024),
    "TNT-B": (64_851_780, 13_404_231_680, 14_048_506_880),
    "CaiT-S36": (67_874_212, 12_839_400_960, 13_901_829_120),
    "AutoFormer-B": (53_172_388, 10_399_097_088, 11_432_563_028),
    "DASViT": (50_518_372, 9_876_089_856, 10_591_417_344),
}


def counted(table: pd.DataFrame) -> pd.DataFrame:
    columns = ["params", "macs_linear", "macs_total"]
    return pd.DataFrame.from_dict(COUNTS, orient="index", columns=columns).loc[table.index]


def test_every_network_is_counted() -> None:
    """The transformers and two of the others, anew; the paper's columns beside all of them."""
    table = paper()
    assert list(table.index) == list(COUNTS)
    some = table.loc[["ResNet-50", "RegNetY-12GF", "ViT-B/16", "TNT-B", "AutoFormer-B", "DASViT"]]
    found = count(some, 100)
    assert found.equals(counted(some))
    both = beside(table, counted(table))
    assert both.loc["DASViT", "papers_count_is"] == "linear"
    assert both.loc["ViT-B/16", "papers_count_is"] == "neither"
    assert both.loc["DASViT", "params_difference"] == pytest.approx(50.518 / 50.4 - 1, abs=1e-4)


def test_results_fill_cells_by_network_size_and_data_set(tmp_path: Path) -> None:
    finished(tmp_path / "a", "dasvit_cifar10", seed=0, top1=0.80)
    finished(tmp_path / "b", "dasvit_cifar10", seed=1, top1=0.82, data_dir="elsewhere")
    finished(tmp_path / "c", "vit", "cifar100")
    finished(tmp_path / "small", "vit", "cifar100", dim=192)
    finished(tmp_path / "digits", "vit", "digits", image_size=8, patch_size=2)
    cells, others = fill_cells(find_runs([tmp_path]))
    assert set(cells) == {("DASViT", "cifar10"), ("ViT-B/16", "cifar100")}
    assert list(cells["DASViT", "cifar10"]["top1"]) == [0.80, 0.82]
    assert sorted(one["folder"].iloc[0].name for one in others) == ["digits", "small"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"seed": 0}, "the same retraining with the same seed 0"),
        ({"seed": 1, "epochs": 300}, r"two recipes \(they differ in epochs\)"),
    ],
)
def test_what_must_not_be_averaged(tmp_path: Path, second: dict, message: str) -> None:
    finished(tmp_path / "a", "dasvit_cifar10", seed=0)
    finished(tmp_path / "b", "dasvit_cifar10", **second)
    with pytest.raises(ValueError, match=message):
        fill_cells(find_runs([tmp_path]))


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "no finished retraining"), (tmp_path / "x", "no folder")):
        with pytest.raises(ValueError, match=message):
            find_runs([folder])


def test_the_program_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table1, "count", lambda table, *args: counted(table))
    finished(tmp_path / "a", "dasvit_cifar10", top1=0.8, top5=0.9)
    table1.main(["--results", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "80.0 / 90.0 (1 seed)" in shown and "not run" in shown
    table1.main(["--json", "--results", str(tmp_path)])
    values = json.loads(capsys.readouterr().out)
    text = json.dumps(values)
    assert all(name in text for name in COUNTS) and all(name in text for name in DATASETS)
    with pytest.raises(SystemExit):
        table1.main(["--num-classes", "0"])
