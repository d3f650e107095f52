"""Statistics on disk: a round trip, and every way a file can be wrong or a disk can refuse."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qvd_core.calibration.statistics import FORMAT, RangeObserver, Statistics
from qvd_core.errors import CalibrationError, StorageError
from tests.closeness import assert_same


def test_round_trip(statistics, tmp_path):
    path = tmp_path / "new" / "folders" / "statistics.safetensors"
    statistics.save(path)
    again = Statistics.load(path)
    assert again.run == statistics.run
    assert again.macs == statistics.macs
    for mine, read in ((statistics.low, again.low), (statistics.high, again.high)):
        assert mine.keys() == read.keys()
        for name in mine:
            assert_same(read[name], mine[name], name)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saving_replaces_an_older_file_and_is_reproducible(statistics, tmp_path):
    path = tmp_path / "statistics.safetensors"
    path.write_text("old")
    statistics.save(path)
    first = path.read_bytes()
    Statistics.load(path).save(path)
    assert Statistics.load(path).run == statistics.run
    assert len(path.read_bytes()) == len(first)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[12:40] = bytes(255 - b for b in data[12:40])
    path.write_bytes(data)


def other_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def no_run(path: Path) -> None:
    save_file({"low/x": torch.zeros(2, 2)}, path, {"format": FORMAT})


def list_for_run(path: Path) -> None:
    save_file({"low/x": torch.zeros(2, 2)}, path, {"format": FORMAT, "run": "[1]", "macs": "{}"})


def surplus_field(path: Path) -> None:
    run = {"prompts": [], "colour": "red"}
    save_file({"low/x": torch.zeros(2, 2)}, path, {"format": FORMAT, "run": json.dumps(run), "macs": "{}"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("low,high\n0,1\n" * 50),
        lambda path: (path.unlink(), path.mkdir()),
        cut,
        flip_header,
        other_tensors,
        no_run,
        list_for_run,
        surplus_field,
    ],
    ids=["absent", "empty", "text", "folder", "cut", "flipped", "other-tensors", "no-run", "list", "surplus"],
)
def test_files_that_are_no_statistics(statistics, tmp_path, damage):
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    damage(path)
    with pytest.raises(CalibrationError) as caught:
        Statistics.load(path)
    assert str(path) in str(caught.value)


def test_statistics_know_their_model(statistics, model):
    statistics.check_model("whatever it is called", model.fingerprint)
    with pytest.raises(CalibrationError, match=f"made on tiny .{model.fingerprint}., not on other .0000."):
        statistics.check_model("other", "0000")


def refuse(code: int):
    def save(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return save


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota is used up"), (errno.EIO, "Input/output error")],
    ids=["full", "quota", "other"],
)
def test_a_refusing_disk_leaves_what_was_there(statistics, tmp_path, monkeypatch, code, reason):
    path = tmp_path / "statistics.safetensors"
    path.write_text("precious")
    monkeypatch.setattr(Path, "write_bytes", refuse(code))
    with pytest.raises(StorageError, match=reason) as caught:
        statistics.save(path)
    assert str(path) in str(caught.value)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_while_writing_leaves_nothing(statistics, tmp_path, file_size_limit):
    path = tmp_path / "statistics.safetensors"
    with file_size_limit(10_000), pytest.raises(StorageError, match="larger than this system allows"):
        statistics.save(path)
    assert list(tmp_path.iterdir()) == []
    statistics.save(path)
    assert path.stat().st_size > 10_000


def test_observers_stream_extremes_by_channel_and_step():
    linear, conv = RangeObserver("a", "linear", 2, 3), RangeObserver("b", "conv2d", 2, 3)
    batches = torch.randn(3, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    for x, step in zip(batches, (0, 1, 0), strict=True):
        linear.observe(x, step)
        conv.observe(x.permute(0, 2, 1)[..., None], step)
    for observer in (linear, conv):
        assert_same(observer.low[0], batches[[0, 2]].amin((0, 1, 2)), "first step")
        assert_same(observer.high[1], batches[1].amax((0, 1)), "second step")
        assert observer.low.shape == (2, 3)


def test_observers_refuse_what_is_not_finite():
    observer = RangeObserver("conv_in", "conv2d", 2, 3)
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="conv_in contains NaN or infinite values at step 2"):
        observer.observe(x, 1)


def test_half_precision_is_observed_in_fp32():
    observer = RangeObserver("a", "linear", 1, 2)
    x = torch.tensor([[1.0, -3.0], [2.0, 0.5]], dtype=torch.bfloat16)
    observer.observe(x, 0)
    assert_same(observer.low, torch.tensor([[1.0, -3.0]]))
    assert_same(observer.high, torch.tensor([[2.0, 0.5]]))


def test_statistics_are_not_compared_by_value(statistics):
    """Tensors have no single truth value, so equality is identity."""
    assert statistics != replace(statistics)
