"""The folder of a sweep: whose it is, who may write, and its record of every run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dasvit.methods import get_method, method_names
from tune.plan import Plan
from tune.store import GROWS, ResultFolder, SweepRecord, open_folder, set_aside

MACHINE = {"device": "cpu", "concurrent_trials": 2}
SETTINGS = {"search": {"dim": 8, "operations": ("a", "b")}, "seeds": 2}


def begin(tmp_path: Path, settings: dict[str, Any]) -> ResultFolder:
    """A sweep that has been started."""
    folder = open_folder(str(tmp_path), "mine", settings)
    folder.write({"settings": settings, "runs": []})
    return folder


def test_a_new_folder_and_the_same_sweep_again(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path / "deep" / "runs"), "mine", SETTINGS)
    assert folder.root == tmp_path / "deep" / "runs" / "mine"
    assert list(folder.root.iterdir()) == [] and folder.read() is None
    with pytest.raises(ValueError, match=r"--resume: .*mine holds no sweep"):
        open_folder(str(tmp_path), "mine", SETTINGS, resume=True)
    begin(tmp_path, SETTINGS)
    again = open_folder(str(tmp_path), "mine", SETTINGS, resume=True).read()
    assert again is not None and again["runs"] == []


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    begin(tmp_path, {"a": 1, "b": {"c": 2}})
    with pytest.raises(ValueError, match="other settings") as refused:
        open_folder(str(tmp_path), "mine", {"a": 2, "b": {"c": 3}, "d": 4})
    for words in ("a: 1 there, 2 now", "c: 2 there, 3 now", "d: None there, 4 now", "--fresh"):
        assert words in str(refused.value)


@pytest.mark.parametrize("name", GROWS)
def test_more_of_the_same_extends_a_sweep(tmp_path: Path, plan: Plan, name: str) -> None:
    plan = replace(plan, random_baseline=1, metric="trained_accuracy", proposals=1)
    begin(tmp_path, plan.to_dict())
    more = replace(plan, **{name: getattr(plan, name) + 1}).to_dict()
    assert open_folder(str(tmp_path), "mine", more).read() is not None
    less = replace(plan, **{name: getattr(plan, name) - 1}).to_dict()
    with pytest.raises(ValueError, match=rf"other settings \({name}: . there, .+ now\)"):
        open_folder(str(tmp_path), "mine", less)


def test_fewer_seeds_than_the_default_meant_are_refused(tmp_path: Path, plan: Plan) -> None:
    begin(tmp_path, replace(plan, retrain_seeds=0).to_dict())  # as many as for the searches: two
    with pytest.raises(ValueError, match=r"\(retrain_seeds: 2 there, 1 now\)"):
        open_folder(str(tmp_path), "mine", replace(plan, retrain_seeds=1).to_dict())
    open_folder(str(tmp_path), "mine", replace(plan, retrain_seeds=2).to_dict())


def test_a_sweep_of_an_earlier_version_continues(tmp_path: Path, plan: Plan) -> None:
    saved = plan.to_dict()
    del saved["proposals"], saved["methods"]
    for name in ("select", "select_epochs", "monitor"):
        del saved["search"][name]
    begin(tmp_path, saved)
    assert open_folder(str(tmp_path), "mine", plan.to_dict()).read() is not None
    assert Plan.from_dict(saved).proposals == 0


@pytest.mark.parametrize("method", method_names())
def test_a_sweep_of_any_method_goes_on(tmp_path: Path, plan: Plan, method: str) -> None:
    search = replace(plan.search, method=get_method(method).like(plan.search.method))
    settings = replace(plan, search=search).to_dict()
    begin(tmp_path, settings)
    read = open_folder(str(tmp_path), "mine", settings).read()
    assert read is not None and Plan.from_dict(read["settings"]).search == search


def test_fresh_moves_a_sweep_aside(tmp_path: Path) -> None:
    assert set_aside(str(tmp_path), "mine") is None
    folder = begin(tmp_path, SETTINGS)
    with folder.lock(), pytest.raises(ValueError, match="another run is writing"):
        set_aside(str(tmp_path), "mine")
    aside = set_aside(str(tmp_path), "mine")
    assert aside is not None and aside.name.startswith("mine-20")
    assert ResultFolder(aside).read() is not None
    assert list(tmp_path.iterdir()) == [aside]
    assert open_folder(str(tmp_path), "mine", {"other": 1}).read() is None


def test_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    assert set_aside(str(tmp_path), "mine") is None
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\).*--name"):
        open_folder(str(tmp_path), "mine", SETTINGS)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "other/1"}'])
def test_a_strange_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json"):
        open_folder(str(tmp_path), "mine", SETTINGS)


@pytest.mark.parametrize(
    ("storage", "name", "message"),
    [
        ("file", "mine", r"cannot write to .*choose another folder"),
        (".", "file", "is a file"),
        (".", "", "--name"),
        (".", "..", "--name"),
        (".", "a/b", "--name"),
        ("s3://bucket/runs", "mine", r"s3://bucket/runs: .*all nodes share"),
    ],
)
def test_where_it_cannot_be(
    storage: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(ValueError, match=message):
        open_folder(storage, name, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """One that computes nothing leaves nothing."""
    folder = open_folder(str(tmp_path), "mine", SETTINGS)
    with pytest.raises(ValueError, match="refused"), folder.lock():
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []
    folder = open_folder(str(tmp_path), "mine", SETTINGS)
    with folder.lock():
        with pytest.raises(ValueError, match="another run is writing"), folder.lock():
            pass
        open_folder(str(tmp_path), "mine", SETTINGS)  # the lock's file is no obstacle
        folder.write({"settings": SETTINGS})
    with folder.lock():
        pass


def test_runs_add_up_and_the_first_lag_stays(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    first = SweepRecord(folder, {"seeds": 2}, "the command")
    first.save()
    assert first.wall() == {} and folder.read() is None
    assert first.begin(MACHINE, lag=1) == 1
    with pytest.raises(KeyboardInterrupt), first.phase("search"):
        raise KeyboardInterrupt
    second = SweepRecord(folder, {"seeds": 2}, "the command")
    assert second.begin(MACHINE, lag=4) == 1
    with second.phase("retraining"):
        pass
    values = folder.read()
    assert values is not None and values["settings"] == {"seeds": 2}
    assert [run["command"] for run in values["runs"]] == ["the command"] * 2
    assert "search" in values["runs"][0]["wall_seconds"]
    assert values["runs"][0]["environment"]["packages"]["torch"]
    wall = second.wall()
    parts = wall["search"] + wall["retraining"] + wall["other"]
    assert (parts, wall["concurrent"]) == (pytest.approx(wall["total"]), 2)
