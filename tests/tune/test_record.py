from pathlib import Path

import pytest

from tune.cluster import Demand
from tune.store import ResultFolder, SweepRecord

NEED = Demand(cpus=1, gpus=0.0, concurrent=2)


def test_runs_add_up_and_the_first_lag_stays(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    first = SweepRecord(folder, {"seeds": 2}, "the command")
    assert first.wall() == {}
    assert first.begin(NEED, lag=1) == 1
    with pytest.raises(KeyboardInterrupt), first.phase("search"):
        raise KeyboardInterrupt
    second = SweepRecord(folder, {"seeds": 2}, "the command")
    assert second.begin(NEED, lag=4) == 1
    with second.phase("retraining"):
        pass
    values = folder.read()
    assert values is not None and values["settings"] == {"seeds": 2}
    assert [run["command"] for run in values["runs"]] == ["the command"] * 2
    assert "search" in values["runs"][0]["wall_seconds"]
    assert values["runs"][0]["environment"]["packages"]["torch"]
    wall = second.wall()
    assert wall["concurrent"] == 2
    parts = wall["search"] + wall["retraining"] + wall["other"]
    assert parts == pytest.approx(wall["total"])


def test_a_run_that_computes_nothing_writes_nothing(tmp_path: Path) -> None:
    SweepRecord(ResultFolder(tmp_path), {}, "the command").save()
    assert list(tmp_path.iterdir()) == []
