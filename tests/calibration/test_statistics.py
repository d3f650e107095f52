"""Statistics on disk: a round trip, and every way a file can be wrong or a disk can refuse."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qvd_core.calibration.statistics import (
    ENTRIES,
    FORMAT,
    TOKENS,
    CalibrationRun,
    Statistics,
    sampling_plan,
)
from qvd_core.errors import CalibrationError, StorageError
from tests.closeness import assert_same


def test_round_trip(statistics, tmp_path):
    path = tmp_path / "new" / "folders" / "statistics.safetensors"
    statistics.save(path)
    again = Statistics.load(path)
    assert again.run == statistics.run
    assert again.macs == statistics.macs
    for kind in set(ENTRIES) - {"tokens"}:
        mine, read = getattr(statistics, kind), getattr(again, kind)
        assert mine.keys() == read.keys()
        for name in mine:
            assert_same(read[name], mine[name], f"{kind} of {name}")
    assert again.tokens.keys() == statistics.tokens.keys()
    for name, tokens in statistics.tokens.items():
        assert_same(again.tokens[name], tokens.half().float(), f"tokens of {name}")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_sites_share_is_saved_once_and_shared_again(statistics, tmp_path):
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    again = Statistics.load(path)
    for kind in ENTRIES:
        mine, read = getattr(statistics, kind), getattr(again, kind)
        assert len({id(t) for t in mine.values()}) < len(mine)
        owners = {}
        for name, tensor in mine.items():
            owner = owners.setdefault(id(tensor), name)
            assert read[name] is read[owner], f"{kind} of {name}"
        assert len({id(t) for t in read.values()}) == len(owners)
    with safe_open(path, framework="pt") as file:
        of_channels = 2 * len({id(t) for t in statistics.low.values()})  # beside the entries: bottom and top
        assert len(file.keys()) == of_channels + sum(
            len({id(t) for t in getattr(statistics, kind).values()}) for kind in ENTRIES
        )


def test_a_model_of_a_billion_parameters_stays_small(tmp_path):
    """The inputs of AnimateDiff's UNet (1.3 B): 427,000 channels of single tokens, 42 temporal attentions."""
    steps, frames, plain, temporal = 25, 16, 427_000, 37_760
    tokens, stride = sampling_plan(plain, frames * temporal, steps)
    low, high = -torch.rand(steps, plain), torch.rand(steps, plain)
    rows = -(-steps // stride)
    assert rows >= 8  # what the search of SCRI looks at
    run = CalibrationRun("big", "0" * 16, "DDIMScheduler", steps, ("a",), 0, frames, 512, 512, 7.5, 1.0)
    statistics = Statistics(
        run,
        {"plain": low, "temporal": low[:, :temporal]},
        {"plain": high, "temporal": high[:, :temporal]},
        {},
        {},
        {"plain": torch.rand(rows, tokens, 1, plain), "temporal": torch.rand(rows, 1, frames, temporal)},
        {},
        {},
        token_stride=stride,
    )
    statistics.save(tmp_path / "statistics.safetensors")
    assert (tmp_path / "statistics.safetensors").stat().st_size < 50e6
    assert Statistics.load(tmp_path / "statistics.safetensors").token_row(24) == rows - 1


def test_small_models_keep_tokens_of_every_step():
    assert sampling_plan(40_000, 16 * 3000, 25) == (TOKENS, 1)
    assert sampling_plan(40_000, 0, 10_000) == (1, 34)  # 12 million values make 300 rows


def test_tokens_beyond_half_precision_keep_full_precision(statistics, tmp_path):
    path = tmp_path / "statistics.safetensors"
    large = {name: 1e5 * tokens for name, tokens in statistics.tokens.items()}
    replace(statistics, tokens=large).save(path)
    again = Statistics.load(path)
    for name, tokens in large.items():
        assert torch.isfinite(again.tokens[name]).all()
        if tokens.abs().max() > 6e4:
            assert_same(again.tokens[name], tokens, name)


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


def foreign_tensor(path: Path) -> None:
    """One that a later version of this program might have added, or another program."""
    statistics = Statistics.load(path)
    statistics.save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({**tensors, "median/conv_in": torch.zeros(2, 2)}, path, metadata)


def missing_tensors(path: Path) -> None:
    """Extremes without the tokens that belong to them."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    shared = {k: v for k, v in json.loads(metadata["shared"]).items() if not k.startswith("tokens/")}
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("tokens/")}
    save_file(kept, path, {**metadata, "shared": json.dumps(shared)})


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
        foreign_tensor,
        missing_tensors,
    ],
    ids=[
        "absent",
        "empty",
        "text",
        "folder",
        "cut",
        "flipped",
        "other-tensors",
        "no-run",
        "list",
        "surplus",
        "foreign-tensor",
        "missing-tensors",
    ],
)
def test_files_that_are_no_statistics(statistics, tmp_path, damage):
    path = tmp_path / "statistics.safetensors"
    statistics.save(path)
    damage(path)
    with pytest.raises(CalibrationError) as caught:
        Statistics.load(path)
    assert str(path) in str(caught.value)


def test_files_of_an_older_version_say_what_to_do(tmp_path):
    path = tmp_path / "statistics.safetensors"
    save_file({"low/x": torch.zeros(2, 2), "high/x": torch.zeros(2, 2)}, path, {"format": "qvd-statistics-1"})
    with pytest.raises(CalibrationError, match=r"qvd-statistics-1.*calibrate again"):
        Statistics.load(path)


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


def test_statistics_are_not_compared_by_value(statistics):
    """Tensors have no single truth value, so equality is identity."""
    assert statistics != replace(statistics)
