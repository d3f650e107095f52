"""Observers of layer inputs: what they keep is what a direct computation on the whole input finds."""

from __future__ import annotations

import pytest
import torch

from qvd_core.calibration.observer import InputObserver
from qvd_core.calibration.statistics import CODES, ENTRIES, TOKENS, as_stored
from qvd_core.errors import CalibrationError
from tests.closeness import assert_same


def test_extremes_of_steps_and_frames_are_rounded_outwards_and_those_of_the_run_exact():
    x = torch.randn(7, 10, 5, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-3, 1e4, 0.0])
    observer = InputObserver("a", "linear", 7, 4, frames=5, mixes_frames=True)
    for step in range(7):
        observer.observe(x[step], step)
    stored = as_stored(observer.entries())
    assert_same(stored["low"].amin(0), x.amin((0, 1, 2)), "low")
    assert_same(stored["high"].amax(0), x.amax((0, 1, 2)), "high")
    width = x.amax((0, 1, 2)) - x.amin((0, 1, 2))
    slack = 1e-5 * width
    for found, true in (
        ((stored["low"], stored["high"]), (x.amin((1, 2)), x.amax((1, 2)))),
        ((stored["channel_frame_low"], stored["channel_frame_high"]), (x.amin((0, 1)), x.amax((0, 1)))),
    ):
        for beyond in (true[0] - found[0], found[1] - true[1]):
            assert (beyond >= -slack).all()
            assert (beyond <= width / CODES + slack).all()
    assert not torch.equal(stored["low"], x.amin((1, 2)))  # or nothing would have been rounded


def test_tokens_of_every_third_step():
    observer = InputObserver("a", "linear", 8, 2, tokens=1, stride=3)
    for step in range(8):
        observer.observe(torch.full((5, 2), float(step)), step)
    assert observer.entries()["tokens"][:, 0, 0, 0].tolist() == [0, 3, 6]


def test_observers_stream_extremes_by_channel_and_step():
    linear, conv = InputObserver("a", "linear", 2, 3), InputObserver("b", "conv2d", 2, 3)
    batches = torch.randn(3, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    for x, step in zip(batches, (0, 1, 0), strict=True):
        linear.observe(x, step)
        conv.observe(x.permute(0, 2, 1)[..., None], step)
    for observer in (linear, conv):
        assert_same(observer.entries()["low"][0], batches[[0, 2]].amin((0, 1, 2)), "first step")
        assert_same(observer.entries()["high"][1], batches[1].amax((0, 1)), "second step")
        assert observer.entries()["low"].shape == (2, 3)


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
    assert_same(observer.entries()["low"][0], rows.amin(0), "low")
    assert_same(observer.entries()["high"][0], rows.amax(0), "high")
    for token in observer.entries()["tokens"][0, :, 0]:
        assert (rows.half() == token.half()).all(1).any()


def test_channels_last_images_are_observed_alike():
    x = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    plain, last = (InputObserver("a", "conv2d", 1, 3, frames=3, by_frame=True) for _ in range(2))
    plain.observe(x, 0)
    last.observe(x.contiguous(memory_format=torch.channels_last), 0)
    for kind in ENTRIES:
        assert_same(last.entries()[kind], plain.entries()[kind], kind)


@pytest.mark.parametrize(("kind", "shape"), [("linear", (6, 5, 3)), ("conv2d", (6, 3, 5, 4))])
def test_frames_repeat_along_the_leading_axis(kind, shape):
    """Two samples of three frames: frame f is at f and at 3 + f."""
    observer = InputObserver("a", kind, 2, 3, frames=3, by_frame=True)
    batches = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for x in batches:
        observer.observe(x, 1)
    for frame in range(3):
        values = batches[:, [frame, 3 + frame]]
        assert observer.entries()["frame_low"][1, frame] == values.min()
        assert observer.entries()["frame_high"][1, frame] == values.max()
        by_channel = values.movedim(-1 if kind == "linear" else 2, 0).flatten(1)
        assert_same(observer.entries()["channel_frame_low"][frame], by_channel.amin(1), "channels")
        assert_same(observer.entries()["channel_frame_high"][frame], by_channel.amax(1), "channels")
    assert torch.isinf(observer.entries()["frame_low"][0]).all()


def test_tokens_know_their_frame():
    """Every value is the number of its frame, so a token tells where it is from."""
    for kind, shape in (("linear", (6, 1, 1)), ("conv2d", (6, 1, 1, 1))):
        observer = InputObserver("a", kind, 50, 2, frames=3, by_frame=True)
        values = (torch.arange(6.0) % 3).view(shape)
        x = values.expand(6, 7, 2) if kind == "linear" else values.expand(6, 2, 5, 4)
        for step in range(50):
            observer.observe(x, step)
        assert_same(observer.entries()["tokens"][:, :, 0, 0], observer.entries()["token_frames"], kind)
        assert observer.entries()["token_frames"].unique().tolist() == [0, 1, 2]


def test_tokens_are_spread_over_all_positions_and_differ_between_sites():
    x = torch.arange(1000.0).view(10, 100, 1)
    seen = {}
    for site in ("a", "b"):
        observer = InputObserver(site, "linear", 100, 1)
        for step in range(100):
            observer.observe(x, step)
        seen[site] = observer.entries()["tokens"].flatten()
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
    counts = torch.bincount(observer.entries()["tokens"].flatten().long(), minlength=clips + 1)
    assert counts[0] == 0
    assert counts[1:].max() - counts[1:].min() <= 1 + 28 * 4 // clips % 2


def test_of_several_calls_in_a_step_each_can_give_tokens():
    """Some pipelines guide by two calls, with the prompt and without; neither may be left out."""
    observer = InputObserver("a", "linear", 60, 1)
    for step in range(60):
        for call in (1.0, 2.0):
            observer.observe(torch.full((5, 1), call), step)
    assert observer.entries()["tokens"].unique().tolist() == [1, 2]


def test_sequences_are_kept_whole():
    x = torch.arange(5.0 * 4 * 3).view(5, 4, 3)
    observer = InputObserver("a", "linear", 30, 3, frames=4, mixes_frames=True, sequences=True)
    for step in range(30):
        observer.observe(x, step)
    assert observer.entries()["tokens"].shape == (30, 1, 4, 3)
    for sequence in observer.entries()["tokens"][:, 0]:
        assert (x.half() == sequence.half()).all((1, 2)).any()
    assert len(observer.entries()["tokens"][:, 0, 0, 0].unique()) > 2
    assert_same(observer.entries()["channel_frame_high"], x.amax(0), "frames")
    assert_same(observer.entries()["high"][29], x.amax((0, 1)), "channels")


def test_what_the_first_input_does_not_fit_is_given_up():
    """A temporal attention of another family may see [positions, channels], or other frames than the clip has."""
    for shape in ((8, 3), (2, 4, 3)):
        observer = InputObserver("a", "linear", 2, 3, frames=5, by_frame=True, mixes_frames=True, sequences=True)
        observer.observe(torch.ones(shape), 1)
        found = observer.entries()
        assert found.keys() == {"low", "high", "tokens"}
        assert found["tokens"].shape == (2, TOKENS, 1, 3)
        assert_same(found["tokens"][1], torch.ones(TOKENS, 1, 3))


def test_observers_refuse_what_is_not_finite():
    observer = InputObserver("conv_in", "conv2d", 2, 3)
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="conv_in contains NaN or infinite values at step 2"):
        observer.observe(x, 1)


@pytest.mark.parametrize(("kind", "shape"), [("linear", (2, 2)), ("conv2d", (1, 2, 1, 2))])
def test_half_precision_is_observed_in_fp32(kind, shape):
    observer = InputObserver("a", kind, 1, 2)
    x = torch.tensor([[1.0, -3.0], [2.0, 0.5]], dtype=torch.bfloat16)
    observer.observe(x if kind == "linear" else x.T.reshape(shape), 0)
    found = observer.entries()
    assert_same(found["low"], torch.tensor([[1.0, -3.0]]))
    assert_same(found["high"], torch.tensor([[2.0, 0.5]]))
    assert {tuple(token) for token in found["tokens"][0, :, 0].tolist()} == {(1.0, -3.0), (2.0, 0.5)}
