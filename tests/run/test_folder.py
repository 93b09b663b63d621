"""A run's folder: accepted, resumed, or refused and left as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import files_of, names_in

from dasvit.run.folder import check_folder, open_folder, read_settings

KIND = "dasvit/test/1"
SETTINGS = {"xi": 0.0, "operations": ["zero", "msa_h2"], "data": {"data_dir": None}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def use(folder: Path, *, resume: bool = False, settings: Any = SETTINGS) -> None:
    """As a run does it."""
    check_folder(folder, KIND, settings, defaults={}, resume=resume)
    open_folder(folder, KIND, settings)


@pytest.mark.parametrize("resume", [False, True])
def test_made_where_missing(folder: Path, resume: bool) -> None:
    check_folder(folder, KIND, SETTINGS, defaults={}, resume=resume)
    assert not folder.parent.exists()  # checking makes nothing
    open_folder(folder, KIND, SETTINGS)
    assert names_in(folder) == ["config.json"]
    assert read_settings(folder, KIND) == SETTINGS
    assert read_settings(str(folder), KIND) == SETTINGS
    assert json.loads((folder / "config.json").read_text()) == {"kind": KIND, "config": SETTINGS}


def test_resumed_with_its_own_settings(folder: Path) -> None:
    use(folder)
    (folder / "checkpoint.pt").write_text("weights")
    before = {name: content for name, (content, _) in files_of(folder).items()}
    use(folder, resume=True, settings=json.loads(json.dumps(SETTINGS)))
    assert {name: content for name, (content, _) in files_of(folder).items()} == before


@pytest.mark.parametrize("name", ["events.out.tfevents.1.host", "stdout.log", ".config.json.7.tmp"])
def test_logs_may_lie_there(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text("text")
    use(folder)
    assert (folder / name).read_text() == "text"


def refused(folder: Path, message: str, *, resume: bool, settings: Any = SETTINGS) -> None:
    before = files_of(folder.parent)
    with pytest.raises(ValueError, match=message) as caught:
        check_folder(folder, KIND, settings, defaults={}, resume=resume)
    assert str(folder) in str(caught.value)
    assert files_of(folder.parent) == before


def test_a_second_run_is_refused(folder: Path) -> None:
    use(folder)
    refused(folder, "holds a run already; resume it or choose another folder", resume=False)


def test_other_settings_are_refused(folder: Path) -> None:
    use(folder)
    other = SETTINGS | {"xi": 0.1}
    refused(folder, r"xi: 0\.0 there, 0\.1 now", resume=True, settings=other)


def test_new_settings_were_at_their_defaults(folder: Path) -> None:
    use(folder)
    now = {**SETTINGS, "compile": False, "data": {"data_dir": None, "num_workers": 0}}
    defaults = {"xi": 1.0, "compile": False, "data": {"data_dir": "d", "num_workers": 0}}
    check_folder(folder, KIND, now, defaults=defaults, resume=True)
    with pytest.raises(ValueError, match=r"\(compile: False there, True now\)"):
        check_folder(folder, KIND, now | {"compile": True}, defaults=defaults, resume=True)
    with pytest.raises(ValueError, match=r"xi: 0\.0 there, 1\.0 now"):
        check_folder(folder, KIND, now | {"xi": 1.0}, defaults=defaults, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "data.json",
        "genotype.json",
        "alpha.jsonl",
        "checkpoint.pt",
        "model.safetensors",
        "encoder.png",
        "notes.txt",
    ],
)
def test_results_of_something_else_are_refused(folder: Path, name: str, resume: bool) -> None:
    """A name that a run would write: the file is someone's, and stays."""
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    refused(folder, r"holds something else \(.+\); choose a new or an empty folder", resume=resume)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "dasvit/other/1", "config": {}}', "of kind 'dasvit/other/1', not"),
        ('{"learning_rate": 1}', "of kind None, not"),
        ("[1, 2]", "of kind None"),
        ('{"kind": "dasvit/test/1"}', "of kind"),
        ('{"kind": "dasvit/test/1", "config": [', "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_another_config_json_is_refused(folder: Path, content: str, message: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    refused(folder, message, resume=True)
    refused(folder, "holds a run already", resume=False)
    with pytest.raises(ValueError, match=message):
        read_settings(folder, KIND)


def test_no_run_there(folder: Path) -> None:
    with pytest.raises(ValueError, match="run folder: there is no file"):
        read_settings(folder, KIND)
    assert not folder.exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_is_no_folder(folder: Path, resume: bool) -> None:
    folder.parent.mkdir()
    folder.write_text("text")
    refused(folder, "is a file; choose another folder", resume=resume)


def test_a_place_that_cannot_be_written(folder: Path) -> None:
    folder.parent.write_text("text")
    check_folder(folder, KIND, SETTINGS, defaults={}, resume=False)
    with pytest.raises(ValueError, match="cannot write to") as caught:
        open_folder(folder, KIND, SETTINGS)
    assert str(folder) in str(caught.value)
    assert folder.parent.read_text() == "text"
