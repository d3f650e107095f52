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
    CODES,
    ENTRIES,
    FORMAT,
    TOKENS,
    CalibrationRun,
    InputObserver,
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


def test_extremes_of_steps_and_frames_are_rounded_outwards_and_those_of_the_run_exact():
    x = torch.randn(7, 10, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-3, 1e4, 0.0])
    observer = InputObserver("a", "linear", 7, 4, frames=5, mixes_frames=True)
    for step in range(7):
        observer.observe(x[step], step)
    observer.finish()
    assert_same(observer.low.amin(0), x.amin((0, 1, 2)), "low")
    assert_same(observer.high.amax(0), x.amax((0, 1, 2)), "high")
    width = x.amax((0, 1, 2)) - x.amin((0, 1, 2))
    slack = 1e-5 * width
    for found, true in (
        ((observer.low, observer.high), (x.amin((1, 2)), x.amax((1, 2)))),
        ((observer.channel_frame_low, observer.channel_frame_high), (x.amin((0, 1)), x.amax((0, 1)))),
    ):
        for beyond in (true[0] - found[0], found[1] - true[1]):
            assert (beyond >= -slack).all()
            assert (beyond <= width / CODES + slack).all()
    assert not torch.equal(observer.low, x.amin((1, 2)))  # or nothing would have been rounded


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


def test_tokens_of_every_third_step():
    observer = InputObserver("a", "linear", 8, 2, tokens=1, stride=3)
    for step in range(8):
        observer.observe(torch.full((5, 2), float(step)), step)
    assert observer.tokens[:, 0, 0, 0].tolist() == [0, 3, 6]


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


def test_observers_stream_extremes_by_channel_and_step():
    linear, conv = InputObserver("a", "linear", 2, 3), InputObserver("b", "conv2d", 2, 3)
    batches = torch.randn(3, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    for x, step in zip(batches, (0, 1, 0), strict=True):
        linear.observe(x, step)
        conv.observe(x.permute(0, 2, 1)[..., None], step)
    for observer in (linear, conv):
        assert_same(observer.low[0], batches[[0, 2]].amin((0, 1, 2)), "first step")
        assert_same(observer.high[1], batches[1].amax((0, 1)), "second step")
        assert observer.low.shape == (2, 3)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("linear", (6, 3)),
        ("linear", (3,)),
        ("linear", (2, 4, 5, 3)),
        ("conv1d", (6, 3, 5)),
        ("conv2d", (6, 3, 5, 4)),
        ("conv3d", (2, 3, 4, 5, 4)),
    ],
    ids=["rows", "one-row", "4-d", "conv1d", "conv2d", "conv3d"],
)
def test_inputs_of_any_shape_are_observed(kind, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    observer = InputObserver("a", kind, 1, 3)
    observer.observe(x, 0)
    rows = x.reshape(-1, 3) if kind == "linear" else x.transpose(0, 1).reshape(3, -1).T
    assert_same(observer.low[0], rows.amin(0), "low")
    assert_same(observer.high[0], rows.amax(0), "high")
    for token in observer.tokens[0, :, 0]:
        assert (rows.half() == token.half()).all(1).any()


def test_channels_last_images_are_observed_alike():
    x = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    plain, last = (InputObserver("a", "conv2d", 1, 3, frames=3, by_frame=True) for _ in range(2))
    plain.observe(x, 0)
    last.observe(x.contiguous(memory_format=torch.channels_last), 0)
    for kind in ENTRIES:
        assert_same(getattr(last, kind), getattr(plain, kind), kind)


@pytest.mark.parametrize(("kind", "shape"), [("linear", (6, 5, 3)), ("conv2d", (6, 3, 5, 4))])
def test_frames_repeat_along_the_leading_axis(kind, shape):
    """Two samples of three frames: frame f is at f and at 3 + f."""
    observer = InputObserver("a", kind, 2, 3, frames=3, by_frame=True)
    batches = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for x in batches:
        observer.observe(x, 1)
    for frame in range(3):
        values = batches[:, [frame, 3 + frame]]
        assert observer.frame_low[1, frame] == values.min()
        assert observer.frame_high[1, frame] == values.max()
        by_channel = values.movedim(-1 if kind == "linear" else 2, 0).flatten(1)
        assert_same(observer.channel_frame_low[frame], by_channel.amin(1), "channels")
        assert_same(observer.channel_frame_high[frame], by_channel.amax(1), "channels")
    assert torch.isinf(observer.frame_low[0]).all()


def test_tokens_know_their_frame():
    """Every value is the number of its frame, so a token tells where it is from."""
    for kind, shape in (("linear", (6, 1, 1)), ("conv2d", (6, 1, 1, 1))):
        observer = InputObserver("a", kind, 50, 2, frames=3, by_frame=True)
        values = (torch.arange(6.0) % 3).view(shape)
        x = values.expand(6, 7, 2) if kind == "linear" else values.expand(6, 2, 5, 4)
        for step in range(50):
            observer.observe(x, step)
        assert_same(observer.tokens[:, :, 0, 0], observer.token_frames, kind)
        assert observer.token_frames.unique().tolist() == [0, 1, 2]


def test_tokens_are_spread_over_all_positions_and_differ_between_sites():
    x = torch.arange(1000.0).view(10, 100, 1)
    seen = {}
    for site in ("a", "b"):
        observer = InputObserver(site, "linear", 100, 1)
        for step in range(100):
            observer.observe(x, step)
        seen[site] = observer.tokens.flatten()
        assert 430 < seen[site].mean() < 570
        assert seen[site].min() < 50
        assert seen[site].max() > 950
    assert not torch.equal(seen["a"], seen["b"])


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 7])
def test_clips_share_the_tokens(clips):
    """Each value is the number of its clip: all tokens are filled, and evenly."""
    observer = InputObserver("a", "linear", 28, 1)
    for clip in range(clips):
        for step in range(28):
            observer.observe(torch.full((5, 1), 1.0 + clip), step, clip, clips)
    counts = torch.bincount(observer.tokens.flatten().long(), minlength=clips + 1)
    assert counts[0] == 0
    assert counts[1:].max() - counts[1:].min() <= 1 + 28 * 4 // clips % 2


def test_of_several_calls_in_a_step_each_can_give_tokens():
    """Some pipelines guide by two calls, with the prompt and without; neither may be left out."""
    observer = InputObserver("a", "linear", 60, 1)
    for step in range(60):
        for call in (1.0, 2.0):
            observer.observe(torch.full((5, 1), call), step)
    assert observer.tokens.unique().tolist() == [1, 2]


def test_sequences_are_kept_whole():
    x = torch.arange(5.0 * 4 * 3).view(5, 4, 3)
    observer = InputObserver("a", "linear", 30, 3, frames=4, mixes_frames=True, sequences=True)
    for step in range(30):
        observer.observe(x, step)
    assert observer.tokens.shape == (30, 1, 4, 3)
    for sequence in observer.tokens[:, 0]:
        assert (x.half() == sequence.half()).all((1, 2)).any()
    assert len(observer.tokens[:, 0, 0, 0].unique()) > 2
    assert_same(observer.channel_frame_high, x.amax(0), "frames")
    assert_same(observer.high[29], x.amax((0, 1)), "channels")


def test_observers_refuse_what_is_not_finite():
    observer = InputObserver("conv_in", "conv2d", 2, 3)
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="conv_in contains NaN or infinite values at step 2"):
        observer.observe(x, 1)


def test_half_precision_is_observed_in_fp32():
    observer = InputObserver("a", "linear", 1, 2)
    x = torch.tensor([[1.0, -3.0], [2.0, 0.5]], dtype=torch.bfloat16)
    observer.observe(x, 0)
    assert_same(observer.low, torch.tensor([[1.0, -3.0]]))
    assert_same(observer.high, torch.tensor([[2.0, 0.5]]))


def test_statistics_are_not_compared_by_value(statistics):
    """Tensors have no single truth value, so equality is identity."""
    assert statistics != replace(statistics)
