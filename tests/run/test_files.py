"""Atomic writing, and reading with errors that name the file."""

import os
from pathlib import Path

import pytest

from dasvit.run.files import (
    check_free_space,
    read_json,
    replace_folder,
    write_atomic,
)


@pytest.mark.parametrize(
    ("content", "written"), [("α\n", "α\n".encode()), (b"\x00\xff", b"\x00\xff")]
)
def test_write_and_overwrite(tmp_path: Path, content: str | bytes, written: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_text("something longer than what comes after it")
    write_atomic(path, content)
    assert path.read_bytes() == written
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_the_new_file_is_complete_when_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data reach the disk before the rename, which is the only change under the name."""
    path, order = tmp_path / "value.json", []
    path.write_text("old")
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        order.append(("fsync", os.fstat(descriptor).st_size, path.read_text()))
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        order.append(("replace", Path(source).stat().st_size, path.read_text()))
        assert Path(source).parent == path.parent  # one file system, or the rename is a copy
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomic(path, "new content")
    assert order == [("fsync", 11, "old"), ("replace", 11, "old")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b'{"name": [1, 2', "not valid JSON"),
        (b"\xff\xfe\x00", "cannot read"),
        ("folder", "cannot read"),
    ],
)
def test_bad_files_name_themselves(
    tmp_path: Path, content: bytes | str | None, message: str
) -> None:
    path = tmp_path / "value.json"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path, "settings")
    assert str(caught.value).startswith("settings: ")
    assert str(path) in str(caught.value)


def test_read_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_atomic(path, '{"name": "α", "values": [1, 2.5, null]}')
    assert read_json(str(path), "settings") == {"name": "α", "values": [1, 2.5, None]}


def test_room_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there"
    check_free_space(path, 1)
    with pytest.raises(
        ValueError, match=r"there needs 1000000000\.00 GB, and its disk has"
    ) as error:
        check_free_space(path, 10**18)
    assert str(path) in str(error.value) and not path.parent.exists()


def test_a_folder_is_replaced_whole_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "model", Path.rename

    def fill(folder: Path) -> None:
        write_atomic(folder / "weights", "new")

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    def rename_unless_new(self: Path, target: Path) -> Path:
        if target == path and not self.name.endswith(".old.tmp"):
            raise OSError("no rights")
        return rename(self, target)

    for _ in range(2):  # made, then replaced
        replace_folder(path, fill)
        assert [p.name for p in path.iterdir()] == ["weights"]
    for way, moved in ((fail, rename), (fill, rename_unless_new)):
        monkeypatch.setattr(Path, "rename", moved)
        with pytest.raises(ValueError, match="cannot write"):
            replace_folder(path, way)
        assert [*path.iterdir()] == [path / "weights"] and [*tmp_path.iterdir()] == [path]
