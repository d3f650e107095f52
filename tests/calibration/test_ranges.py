"""Ranges of static grids against the rules written out in numpy, one step and one candidate at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qvd_core.calibration.ranges import input_range
from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import RANGE_SEARCHES, ActivationFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from tests.closeness import assert_close, assert_same

STEPS, SAMPLES, CHANNELS, FRAMES = 3, 4, 6, 2
BY_STEP, BY_FRAME, WHOLE = "static_per_step", "static_per_frame", "static_per_tensor"
schemes = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])


def statistics_of(tokens: torch.Tensor, frames: torch.Tensor | None = None, margin: float = 1.3) -> Statistics:
    """Statistics of one site "x" whose extremes reach `margin` times beyond its tokens."""
    low, high = margin * tokens.amin((1, 2)), margin * tokens.amax((1, 2))
    frame_low, frame_high, token_frames = {}, {}, {}
    if frames is not None:
        spread = torch.linspace(0.4, 1, FRAMES)
        frame_low["x"], frame_high["x"] = low.amin(1)[:, None] * spread, high.amax(1)[:, None] * spread
        token_frames["x"] = frames.float()
    return Statistics(None, {"x": low}, {"x": high}, frame_low, frame_high, {"x": tokens}, token_frames, {})


def some_tokens(steps=STEPS, samples=SAMPLES, length=1, channels=CHANNELS, seed=0) -> torch.Tensor:
    """Off centre, heavy-tailed, wider at every step."""
    x = torch.randn(steps, samples, length, channels, generator=torch.Generator().manual_seed(seed))
    return (x + 0.3 * x**3 + 0.2) * torch.linspace(1, 2, steps)[:, None, None, None]


def some_frames() -> torch.Tensor:
    return torch.randint(0, FRAMES, (STEPS, SAMPLES), generator=torch.Generator().manual_seed(1))


def quantized(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> np.ndarray:
    if symmetric:
        ends = 2 ** (bits - 1) - 1
        scale = max(abs(low), abs(high)) / ends or 1.0
        return np.clip(np.rint(x / scale), -ends, ends) * scale
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1) or 1.0
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def errors(tokens, lows, highs, bits, symmetric, extremes) -> np.ndarray:
    """Of factors 50/50, 49/50, ..: the mean over all values of |x' - x|^2.4, each token on its own range.

    `extremes`: (value, low, high) of recorded extremes, which count as single values beside all those.
    """
    found = []
    for i in range(50, 0, -1):
        parts = [
            np.abs(quantized(token, low * i / 50, high * i / 50, bits, symmetric) - token) ** 2.4
            for token, low, high in zip(tokens.double().numpy(), lows, highs, strict=True)
        ]
        ends = [
            np.abs(quantized(np.array(v), low * i / 50, high * i / 50, bits, symmetric) - v) ** 2.4
            for v, low, high in extremes
        ]
        found.append(np.mean(parts) + np.sum(ends) / tokens.numel())
    return np.array(found)


def assert_least(factor: float, found: np.ndarray, name: str) -> None:
    """`factor` is the one of least error, or as good up to fp32 rounding."""
    assert found[50 - round(factor * 50)] <= found.min() * (1 + 1e-4), name
    assert factor * 50 == pytest.approx(round(factor * 50), abs=1e-3), name


@pytest.mark.parametrize("form", [WHOLE, BY_STEP, BY_FRAME])
def test_extremes(form):
    statistics = statistics_of(some_tokens(), some_frames())
    low, high = input_range(statistics, "x", ActivationFormat(8, form))
    expected = {
        WHOLE: (statistics.low["x"].min().reshape(1), statistics.high["x"].max().reshape(1)),
        BY_STEP: (statistics.low["x"].amin(1), statistics.high["x"].amax(1)),
        BY_FRAME: (statistics.frame_low["x"].amin(0), statistics.frame_high["x"].amax(0)),
    }[form]
    assert_same(low, expected[0], "low")
    assert_same(high, expected[1], "high")


@schemes
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("length", [1, 5], ids=["tokens", "sequences"])
@pytest.mark.parametrize("seed", range(3))
def test_least_error_at_each_step(symmetric, bits, length, seed):
    tokens = some_tokens(length=length, seed=seed)
    statistics = statistics_of(tokens)
    low, high = input_range(statistics, "x", ActivationFormat(bits, BY_STEP, symmetric, "mse"))
    widest = statistics.low["x"].amin(1), statistics.high["x"].amax(1)
    for step in range(STEPS):
        ends = [float(side[step]) for side in widest]
        extremes = [(float(v), *ends) for side in (statistics.low, statistics.high) for v in side["x"][step]]
        lows, highs = ([end] * SAMPLES for end in ends)
        # Every step has a third of all the values that were counted.
        found = errors(tokens[step], lows, highs, bits, symmetric, extremes)
        assert_least(float(high[step] / widest[1][step]), found, f"step {step}")
        assert float(low[step] / widest[0][step]) == pytest.approx(float(high[step] / widest[1][step]))


@schemes
@pytest.mark.parametrize("frames", [None, some_frames()], ids=["whole", "by-frame"])
def test_least_error_of_each_step_averaged(symmetric, frames):
    """The port's rule: the mean over steps of what a search of that step alone finds."""
    tokens = some_tokens()
    statistics = statistics_of(tokens, frames)
    form = ActivationFormat(4, WHOLE if frames is None else BY_FRAME, symmetric, "mse_by_step")
    found = torch.stack(input_range(statistics, "x", form))
    alone = []
    for step in range(STEPS):
        one = statistics_of(tokens[step : step + 1], None if frames is None else frames[step : step + 1])
        alone.append(torch.stack(input_range(one, "x", dataclasses.replace(form, search="mse"))))
    assert_close(found, torch.stack(alone).mean(0), 1e-6, "range")
    assert not torch.equal(alone[0], alone[1])


@schemes
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [None, 3000], ids=["as-sampled", "of-many"])
def test_least_error_over_all_steps_together(symmetric, bits, count):
    """The more values the samples stand for, the less an extreme weighs."""
    tokens = some_tokens()
    statistics = statistics_of(tokens)
    if count is not None:
        statistics.counts["x"] = count
    low, high = (float(end) for end in input_range(statistics, "x", ActivationFormat(bits, WHOLE, symmetric, "mse")))
    ends = [float(statistics.low["x"].min()), float(statistics.high["x"].max())]
    extremes = [(float(v), *ends) for v in (*statistics.low["x"].amin(0), *statistics.high["x"].amax(0))]
    flat = tokens.flatten(0, 1)
    mean, total = (errors(flat, *([end] * len(flat) for end in ends), bits, symmetric, e) for e in ([], extremes))
    found = mean + (total - mean) * flat.numel() / ((count or STEPS * SAMPLES) * CHANNELS)
    assert_least(high / ends[1], found, "factor")
    assert low / ends[0] == pytest.approx(high / ends[1])


@schemes
@pytest.mark.parametrize("seed", range(3))
def test_frames_keep_their_ranges_and_share_the_factor(symmetric, seed):
    """One factor for all frames and steps; each token counts on the range of its own frame."""
    tokens, frames = some_tokens(seed=seed), some_frames()
    statistics = statistics_of(tokens, frames)
    low, high = input_range(statistics, "x", ActivationFormat(4, BY_FRAME, symmetric, "mse"))
    widest = statistics.frame_low["x"].amin(0), statistics.frame_high["x"].amax(0)
    ends = [[float(side[frame]) for frame in frames.flatten()] for side in widest]
    extremes = [(float(side[f]), float(widest[0][f]), float(widest[1][f])) for side in widest for f in range(FRAMES)]
    found = errors(tokens.flatten(0, 1), *ends, 4, symmetric, extremes)
    for frame in range(FRAMES):
        assert_least(float(high[frame] / widest[1][frame]), found, f"frame {frame}")
        assert float(low[frame] / widest[0][frame]) == pytest.approx(float(high[frame] / widest[1][frame]))


def test_of_equal_errors_the_widest_range_wins():
    """Sampled zeros are exact on every grid, so nothing speaks against the recorded extremes."""
    statistics = statistics_of(torch.zeros(STEPS, SAMPLES, 1, CHANNELS))
    statistics.low["x"], statistics.high["x"] = statistics.low["x"] - 2, statistics.high["x"] + 3
    low, high = input_range(statistics, "x", ActivationFormat(4, search="mse"))
    assert_close(torch.cat([low, high]), torch.tensor([-2.0, 3.0]), 1e-6, "range")


@pytest.mark.parametrize("form", [WHOLE, BY_STEP, BY_FRAME])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("search", RANGE_SEARCHES)
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30])
def test_inputs_that_never_vary(form, symmetric, search, value):
    statistics = statistics_of(torch.full((STEPS, SAMPLES, 1, CHANNELS), value), some_frames(), margin=1)
    low, high = input_range(statistics, "x", ActivationFormat(8, form, symmetric, search))
    assert torch.isfinite(low).all()
    assert torch.isfinite(high).all()
    assert_close(torch.maximum(low.abs(), high.abs())[-1], abs(value), 1e-6, "reach")


def test_a_channel_of_zeros_does_not_change_the_others_range():
    tokens = some_tokens()
    zeros = torch.cat([tokens, torch.zeros(STEPS, SAMPLES, 1, 1)], -1)
    for search in ("min_max", "mse", "mse_by_step"):
        form = ActivationFormat(8, BY_STEP, search=search)
        alone, beside = (input_range(statistics_of(t), "x", form) for t in (tokens, zeros))
        assert_close(torch.cat(beside), torch.cat(alone), 1e-6, search)


@pytest.mark.parametrize("length", [1, 5], ids=["tokens", "sequences"])
def test_percentiles_are_those_of_numpy(length):
    tokens = some_tokens(samples=60, length=length)
    form = ActivationFormat(8, search="percentile")
    low, high = input_range(statistics_of(tokens), "x", form)
    expected = np.quantile(tokens.double().numpy(), [0.001, 0.999])
    assert_close(torch.cat([low, high]), expected, 1e-3, "whole tensor")

    by_step = ActivationFormat(8, BY_STEP, search="percentile")
    ends = torch.stack(input_range(statistics_of(tokens), "x", by_step))
    for step in range(STEPS):
        expected = np.quantile(tokens[step].double().numpy(), [0.001, 0.999])
        assert_close(ends[:, step], expected, 1e-3, f"step {step}")


def test_percentiles_of_frames():
    tokens, frames = some_tokens(), some_frames()
    statistics = statistics_of(tokens, frames)
    ends = torch.stack(input_range(statistics, "x", ActivationFormat(8, BY_FRAME, search="percentile")))
    for frame in range(FRAMES):
        expected = np.quantile(tokens[frames == frame].double().numpy(), [0.001, 0.999])
        assert_close(ends[:, frame], expected, 1e-3, f"frame {frame}")


def test_a_frame_without_tokens_keeps_its_extremes():
    statistics = statistics_of(some_tokens(), torch.ones(STEPS, SAMPLES, dtype=torch.long))
    low, high = input_range(statistics, "x", ActivationFormat(8, BY_FRAME, search="percentile"))
    assert_same(low[0], statistics.frame_low["x"][:, 0].min())
    assert_same(high[0], statistics.frame_high["x"][:, 0].max())
    assert low[1] > statistics.frame_low["x"][:, 1].min()


@pytest.mark.parametrize("form", [WHOLE, BY_STEP, BY_FRAME])
@pytest.mark.parametrize("search", ["mse", "percentile"])
def test_tokens_that_happen_to_be_zero_leave_a_range(form, search):
    """Most of a padded text is zeros, and of a few random tokens often all; the words must not be lost."""
    statistics = statistics_of(some_tokens(), some_frames())
    extremes = input_range(statistics, "x", ActivationFormat(8, form))
    statistics.tokens["x"] = torch.zeros_like(statistics.tokens["x"])
    low, high = input_range(statistics, "x", ActivationFormat(8, form, search=search))
    assert (low < 0.2 * extremes[0]).all()
    assert (high > 0.2 * extremes[1]).all()


@pytest.mark.parametrize("form", [WHOLE, BY_STEP])
@pytest.mark.parametrize("search", RANGE_SEARCHES)
def test_ranges_of_transformed_inputs(form, search):
    """Those of an input that had been transformed before it was recorded."""
    generator = torch.Generator().manual_seed(2)
    transform = ChannelTransform(
        torch.randn(CHANNELS, generator=generator), torch.exp(torch.randn(CHANNELS, generator=generator))
    )
    raw = statistics_of(some_tokens())
    moved = statistics_of(transform.apply(raw.tokens["x"]))
    moved.low["x"] = transform.apply(raw.low["x"])
    moved.high["x"] = transform.apply(raw.high["x"])
    activations = ActivationFormat(6, form, search=search)
    expected = input_range(moved, "x", activations)
    assert_close(torch.cat(input_range(raw, "x", activations, transform)), torch.cat(expected), 1e-6, search)
    plain = torch.cat(input_range(raw, "x", activations))
    nothing = ChannelTransform(torch.zeros(CHANNELS), torch.ones(CHANNELS))
    assert_close(torch.cat(input_range(raw, "x", activations, nothing)), plain, 0, "nothing")


def test_transformed_frames_share_one_range():
    statistics = statistics_of(some_tokens(), some_frames())
    low, _ = input_range(
        statistics, "x", ActivationFormat(6, BY_FRAME), ChannelTransform(torch.zeros(CHANNELS), torch.ones(CHANNELS))
    )
    assert_same(low, statistics.low["x"].min().reshape(1))


@pytest.mark.parametrize("form", [WHOLE, BY_STEP])
@pytest.mark.parametrize("search", RANGE_SEARCHES)
@pytest.mark.parametrize("part", [slice(2), slice(2, None)], ids=["first", "rest"])
def test_ranges_of_some_channels_are_those_of_an_input_of_just_these(form, search, part):
    whole, alone = statistics_of(some_tokens(), some_frames()), statistics_of(some_tokens()[..., part])
    activations = ActivationFormat(6, form, search=search)
    found = input_range(whole, "x", activations, channels=part)
    assert_close(torch.cat(found), torch.cat(input_range(alone, "x", activations)), 1e-6, search)


@pytest.mark.parametrize("bits", [4, 8])
def test_least_error_is_no_worse_than_the_extremes_on_real_tokens(mini, mini_statistics, bits):
    """Extremes are among the candidates, so only sampling too few values could make them the better choice."""
    worst = {}
    for site in mini.sites:
        tokens = mini_statistics.tokens[site.name]
        widest = input_range(mini_statistics, site.name, ActivationFormat(bits, BY_STEP))
        found = input_range(mini_statistics, site.name, ActivationFormat(bits, BY_STEP, search="mse"))
        for step in range(len(tokens)):
            values = tokens[step].double().numpy()
            chosen, extremes = (
                np.mean(np.abs(quantized(values, float(low[step]), float(high[step]), bits, False) - values) ** 2.4)
                for low, high in (found, widest)
            )
            worst[site.name, step] = chosen / max(extremes, 1e-30)
    bad = {where: ratio for where, ratio in worst.items() if ratio > 1.5}
    assert not bad, f"{len(bad)} of {len(worst)} are worse, at most {max(bad.values()):.1f} times"
