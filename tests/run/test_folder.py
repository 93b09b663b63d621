"""A run's folder: accepted, resumed, or refused and left as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import files_of, names_in

from dasvit.run.folder import (
    SkippedImagesWarning,
    check_folder,
    note_skipped,
    open_folder,
    read_settings,
)

KIND = "dasvit/test/1"
SETTINGS = {"xi": 0.0, "operations": ["zero", "msa_h2"], "data": {"data_dir": None}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def check(folder: Path, *, resume: bool, settings: Any = SETTINGS, **defaults: Any) -> None:
    check_folder(folder, KIND, settings, defaults=defaults, resume=resume)


@pytest.mark.parametrize("resume", [False, True])
def test_made_where_missing(folder: Path, resume: bool) -> None:
    check(folder, resume=resume)
    assert not folder.parent.exists()  # checking makes nothing
    folder.mkdir(parents=True)
    for name in ("events.out.tfevents.1.host", "stdout.log", ".config.json.7.tmp"):
        (folder / name).write_text("left over")
        check(folder, resume=resume)
        (folder / name).unlink()
    open_folder(folder, KIND, SETTINGS)
    assert names_in(folder) == ["config.json"]
    assert read_settings(str(folder), KIND) == SETTINGS
    assert json.loads((folder / "config.json").read_text()) == {"kind": KIND, "config": SETTINGS}


def test_resumed_with_its_own_settings(folder: Path) -> None:
    open_folder(folder, KIND, SETTINGS)
    (folder / "checkpoint.pt").write_text("weights")
    before = {name: content for name, (content, _) in files_of(folder).items()}
    check(folder, resume=True, settings=json.loads(json.dumps(SETTINGS)))
    open_folder(folder, KIND, SETTINGS)
    assert {name: content for name, (content, _) in files_of(folder).items()} == before


ELSE = r"holds something else \(.+\); choose a new or an empty folder"


@pytest.mark.parametrize(
    ("name", "content", "resume", "message"),
    [
        # A name that a run would write: the file is someone's, and stays.
        *((name, "{}", again, ELSE) for name in ("data.json", "x.pt") for again in (False, True)),
        ("config.json", "{}", False, "holds a run already; resume it or choose another folder"),
        ("config.json", '{"kind": "other/1", "config": {}}', True, "of kind 'other/1', not"),
        ("config.json", '{"learning_rate": 1}', True, "of kind None, not"),
        ("config.json", '{"kind": "dasvit/test/1", "config": [', True, "not valid JSON"),
        (".", "", True, "is a file; choose another folder"),
    ],
)
def test_what_is_no_folder_for_a_run(
    folder: Path, name: str, content: str, resume: bool, message: str
) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    before = files_of(folder.parent)
    with pytest.raises(ValueError, match=message) as caught:
        check(folder, resume=resume)
    assert str(folder) in str(caught.value)
    assert files_of(folder.parent) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xi": 0.1}, r"with other settings \(xi: 0\.0 there, 0\.1 now\); continue it"),
        ({"xi": 1, "operations": []}, r"\(operations: \[.*\] there, \[\] now; xi: 0\.0 there, 1 "),
        ({"method": {"name": "darts", "xi": 1}}, r"\(method: None there, 'darts' now; xi: "),
    ],
)
def test_other_settings_are_named(folder: Path, changed: dict, message: str) -> None:
    open_folder(folder, KIND, SETTINGS)
    with pytest.raises(ValueError, match=message):
        check(folder, resume=True, settings=SETTINGS | changed)


def test_new_settings_were_at_their_defaults(folder: Path) -> None:
    open_folder(folder, KIND, SETTINGS)
    now = {**SETTINGS, "compile": False}
    check(folder, resume=True, settings=now, xi=1.0, compile=False)
    with pytest.raises(ValueError, match=r"\(compile: False there, True now\)"):
        check(folder, resume=True, settings=now | {"compile": True}, compile=False)


def test_a_place_that_cannot_be_written(folder: Path) -> None:
    folder.parent.write_text("text")
    with pytest.raises(ValueError, match="cannot write to") as caught:
        open_folder(folder, KIND, SETTINGS)
    assert str(folder) in str(caught.value)


def test_skipped_images_stay_the_same(tmp_path: Path) -> None:
    path = tmp_path / "skipped_images.txt"
    note_skipped(tmp_path, [])
    assert not path.exists()
    with pytest.warns(SkippedImagesWarning, match=r"^4 unreadable .* \(a, b, c, …\); all are"):
        note_skipped(tmp_path, ["a", "b", "c", "d"])
    assert path.read_text() == "a\nb\nc\nd\n"
    (tmp_path / "checkpoint.pt").write_text("")
    for other in (["a"], []):
        with pytest.raises(ValueError, match="other images can be read now"):
            note_skipped(tmp_path, other)
