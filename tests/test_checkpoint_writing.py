"""Writing a checkpoint: wholly or not at all, and never over what is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qvd_core.checkpoint import load_quantized, save
from qvd_core.checkpoint_file import CONFIG, WEIGHTS
from qvd_core.errors import StorageError
from tests.closeness import assert_same


@pytest.fixture
def saved(named, tmp_path) -> Path:
    save(named("qvd-w4a8"), tmp_path / "saved")
    return tmp_path / "saved"


def test_an_earlier_checkpoint_is_replaced_and_other_files_stay(model, named, call, saved):
    (saved / "README.md").write_text("mine")
    save(named("minmax-w8a8"), saved)
    assert_same(call(load_quantized(saved, model).denoiser), call(named("minmax-w8a8").denoiser))
    assert {path.name for path in saved.iterdir()} == {CONFIG, WEIGHTS, "README.md"}


@pytest.mark.parametrize("content", ["notes.txt", CONFIG])
def test_a_folder_that_holds_something_else_is_not_touched(named, tmp_path, content):
    (tmp_path / content).write_text('{"_class_name": "UNetMotionModel"}')
    with pytest.raises(StorageError, match="hoose a"):
        save(named("minmax-w8a8"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_a_full_disk_leaves_nothing_new_and_nothing_lost(model, named, call, saved, tmp_path, file_size_limit):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with file_size_limit(20_000):
        for folder in (saved, tmp_path / "new"):
            with pytest.raises(StorageError, match=r"Cannot write .*larger than this system allows"):
                save(named("minmax-w8a8"), folder)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, os.strerror(28))], ids=["ctrl-c", "full"])
def test_an_interruption_while_writing(named, saved, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    written = []

    def interrupted(tensor):
        written.append(tensor)
        if len(written) > 100:
            raise error
        return b""

    monkeypatch.setattr("qvd_core.checkpoint_file._bytes", interrupted)
    monkeypatch.setattr("qvd_core.checkpoint.metadata_of", lambda *_: {})
    with pytest.raises((KeyboardInterrupt, StorageError)):
        save(named("minmax-w8a8"), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_place_where_nothing_can_be_written(named, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=r"Cannot write .*; choose another"):
            save(named("minmax-w8a8"), folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(named, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission is denied; choose another folder"):
        save(named("minmax-w8a8"), tmp_path / "x")
