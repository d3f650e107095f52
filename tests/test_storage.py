"""Files written whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from qvd_core.errors import StorageError
from qvd_core.storage import replacing, replacing_in


def test_the_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with replacing(path) as scratch:
        scratch.write_text("new")
        assert not path.exists()
        assert scratch.parent == path.parent
        assert scratch.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=["any", "ctrl-c", "exit"])
def test_any_exception_leaves_the_old_file_and_no_scratch(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with replacing(path) as scratch:
            scratch.write_text("half of the ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
        (errno.EACCES, "permission is denied; choose another folder"),
        (errno.EROFS, "the disk is read-only; choose another folder"),
        (errno.EIO, "Input/output error"),
    ],
    ids=["full", "quota", "permission", "read-only", "other"],
)
def test_reasons_of_the_system_become_advice(tmp_path, code, reason):
    path = tmp_path / "file.txt"

    def write():
        with replacing(path) as scratch:
            scratch.write_text("x")
            raise OSError(code, os.strerror(code))

    with pytest.raises(StorageError, match=f"Cannot write {path}: .*{reason}"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up(tmp_path, file_size_limit):
    path = tmp_path / "file.bin"

    def write():
        with replacing(path) as scratch:
            scratch.write_bytes(bytes(5000))

    with file_size_limit(1000), pytest.raises(StorageError, match="larger than this system allows"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file.txt/below", "folder"], ids=["below-a-file", "a-folder-in-the-way"])
def test_places_where_no_file_can_be(tmp_path, place):
    (tmp_path / "file.txt").write_text("old")
    (tmp_path / "folder").mkdir()

    def write():
        with replacing(tmp_path / place) as scratch:
            scratch.write_text("x")

    with pytest.raises(StorageError, match=r"Cannot write .*; choose another"):
        write()
    assert {p.name for p in tmp_path.iterdir()} == {"file.txt", "folder"}


def test_permissions_are_those_of_an_ordinary_new_file(tmp_path):
    (tmp_path / "ordinary").write_text("x")
    with replacing(tmp_path / "ours") as scratch:
        scratch.write_text("x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("existing", [True, False], ids=["replaced", "new"])
def test_files_that_belong_together_change_together(tmp_path, monkeypatch, failing, existing):
    """Whichever of the renames at the end fails."""
    folder = tmp_path / "x"
    if existing:
        folder.mkdir()
        for name in "ab":
            (folder / name).write_text("old")
    replace_file, count = Path.replace, iter(range(100))

    def sometimes(self, target):
        if next(count) == failing:
            raise KeyboardInterrupt
        return replace_file(self, target)

    def write():
        with replacing_in(folder, "a", "b") as scratches:
            for scratch in scratches:
                scratch.write_text("new")
            monkeypatch.setattr(Path, "replace", sometimes)

    if not existing and failing > 1:
        write()
        assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "new", "b": "new"}
        return
    with pytest.raises(KeyboardInterrupt):
        write()
    if existing:
        assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "old", "b": "old"}
    else:
        assert not folder.exists()
