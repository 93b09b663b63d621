from dataclasses import replace
from pathlib import Path

import pytest

from tune.plan import Plan
from tune.store import ResultFolder, open_folder, set_aside

SETTINGS = {"search": {"dim": 8, "operations": ("a", "b")}, "seeds": 2}


def test_a_new_folder(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path / "deep" / "runs"), "mine", SETTINGS)
    assert folder.root == tmp_path / "deep" / "runs" / "mine"
    assert list(folder.root.iterdir()) == []
    assert folder.read() is None


def test_the_same_sweep_again(tmp_path: Path) -> None:
    open_folder(str(tmp_path), "mine", SETTINGS).write({"settings": SETTINGS, "runs": []})
    again = open_folder(str(tmp_path), "mine", SETTINGS).read()
    assert again is not None and again["runs"] == []


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    open_folder(str(tmp_path), "mine", SETTINGS).write({"settings": SETTINGS})
    other = {"search": {"dim": 16, "operations": ("a", "b")}, "seeds": 2}
    with pytest.raises(ValueError, match=r"other settings \(dim: 8 there, 16 now\)"):
        open_folder(str(tmp_path), "mine", other)


def test_every_difference_is_named(tmp_path: Path) -> None:
    open_folder(str(tmp_path), "mine", SETTINGS).write({"settings": {"a": 1, "b": {"c": 2}}})
    with pytest.raises(ValueError, match="other settings") as refused:
        open_folder(str(tmp_path), "mine", {"a": 2, "b": {"c": 3}, "d": 4})
    for words in ("a: 1 there, 2 now", "c: 2 there, 3 now", "d: None there, 4 now", "--fresh"):
        assert words in str(refused.value)


def test_a_sweep_of_a_version_with_fewer_settings(tmp_path: Path, plan: Plan) -> None:
    """What it did not know was as by default."""
    before = plan.to_dict()
    del before["search"]["eval_epochs"], before["search"]["data"]["num_workers"]
    del before["retrain"]["compile"]
    open_folder(str(tmp_path), "mine", before).write({"settings": before})
    open_folder(str(tmp_path), "mine", plan.to_dict(), defaults=plan.defaults(), resume=True)
    other = replace(plan, search=replace(plan.search, eval_epochs=2)).to_dict()
    with pytest.raises(ValueError, match=r"settings \(eval_epochs: 1 there, 2 now\)"):
        open_folder(str(tmp_path), "mine", other, defaults=plan.defaults())


def test_resume_insists(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--resume: .*mine holds no sweep"):
        open_folder(str(tmp_path), "mine", SETTINGS, resume=True)
    assert list(tmp_path.iterdir()) == []
    open_folder(str(tmp_path), "mine", SETTINGS).write({"settings": SETTINGS})
    open_folder(str(tmp_path), "mine", SETTINGS, resume=True)


def test_fresh_moves_a_sweep_aside(tmp_path: Path) -> None:
    assert set_aside(str(tmp_path), "mine") is None
    folder = open_folder(str(tmp_path), "mine", SETTINGS)
    folder.write({"settings": SETTINGS})
    with folder.lock(), pytest.raises(ValueError, match="another run is writing"):
        set_aside(str(tmp_path), "mine")
    aside = set_aside(str(tmp_path), "mine")
    assert aside is not None and aside.name.startswith("mine-20")
    assert ResultFolder(aside).read() is not None
    assert list(tmp_path.iterdir()) == [aside]
    assert open_folder(str(tmp_path), "mine", {"other": 1}).read() is None


def test_fresh_leaves_something_else_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    assert set_aside(str(tmp_path), "mine") is None
    with pytest.raises(ValueError, match="holds something else"):
        open_folder(str(tmp_path), "mine", SETTINGS)


def test_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\).*--name"):
        open_folder(str(tmp_path), "mine", SETTINGS)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "other/1"}'])
def test_a_strange_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json"):
        open_folder(str(tmp_path), "mine", SETTINGS)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot write to .*choose another folder"):
        open_folder(str(tmp_path / "file"), "mine", SETTINGS)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        open_folder(str(tmp_path), "mine", SETTINGS)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_a_name_is_one_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="--name"):
        open_folder(str(tmp_path), name, SETTINGS)


def test_a_bucket_is_no_folder() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/runs: .*all nodes share"):
        open_folder("s3://bucket/runs", "mine", SETTINGS)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path), "mine", SETTINGS)
    with folder.lock():
        with pytest.raises(ValueError, match="another run is writing"), folder.lock():
            pass
        open_folder(str(tmp_path), "mine", SETTINGS)  # the lock's file is no obstacle
        folder.write({"settings": SETTINGS})
    with folder.lock():
        pass


def test_a_run_that_computes_nothing_leaves_nothing(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path), "mine", SETTINGS)
    with pytest.raises(ValueError, match="refused"), folder.lock():
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_ray_records_go(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path)
    (folder.ray_root / "x").mkdir(parents=True)
    folder.remove_ray_records()
    folder.remove_ray_records()
    assert list(tmp_path.iterdir()) == []
