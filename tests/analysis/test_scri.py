"""SCRI's view of a layer against what a variant really gets, and against raw activations."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from analysis.scri import STAGES, channel_widths, staged_transform, threshold_table
from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat, ShiftAndScale, WeightFormat
from qvd_core.methods.at_sites import pads_with_zeros
from qvd_core.models.loader import VideoModel
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.recipe import Recipe
from qvd_core.variant import Variant, quantize
from tests.analysis.conftest import RawInputs
from tests.closeness import assert_same

BLOCK = "down_blocks.0.motion_modules.0.transformer_blocks.0"
SITES = {
    "attention": f"{BLOCK}.attn1.to_q",
    "second-reader": f"{BLOCK}.attn1.to_v",
    "feed-forward": f"{BLOCK}.ff.net.0.proj",
    "padded": "up_blocks.1.resnets.0.conv1",
}
WEIGHTS, INPUTS = WeightFormat(4, symmetric=False), ActivationFormat(6)


@pytest.fixture(scope="module")
def variant(model: VideoModel, statistics: Statistics) -> Variant:
    return quantize(model, Recipe("x", WEIGHTS, INPUTS, channels=ShiftAndScale(sites=("*",))), statistics)


def own_search(variant: Variant, site: str) -> str:
    """The site a variant files the search of this input under: its first reader."""
    return site.replace("to_v", "to_q")


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_the_search_is_the_one_of_the_variant(
    model: VideoModel, statistics: Statistics, variant: Variant, site: str
) -> None:
    table = threshold_table(model, statistics, site, WEIGHTS, INPUTS)
    found = variant.thresholds[own_search(variant, site)]
    assert_same(table.search.thresholds, found.thresholds)
    assert_same(table.search.errors, found.errors)
    assert table.chosen == table.search.threshold == found.threshold
    np.testing.assert_array_equal(table.thresholds, found.thresholds.numpy())
    np.testing.assert_allclose(table.relative_errors, (found.errors / found.errors[0]).numpy(), rtol=1e-6)
    assert table.relative_errors[0] == 1
    assert table.relative_errors.argmin() == found.best


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_the_last_stage_is_what_the_variant_does(
    model: VideoModel, statistics: Statistics, variant: Variant, site: str
) -> None:
    chosen = threshold_table(model, statistics, site, WEIGHTS, INPUTS).chosen
    transform = staged_transform(model, statistics, site, "shifted and scaled", chosen)
    assert transform is not None
    assert_same(transform.shift, variant.transforms[site].shift)
    assert_same(transform.scale, variant.transforms[site].scale)


def test_the_stages_before_it(model: VideoModel, statistics: Statistics) -> None:
    shift_alone = quantize(
        model, Recipe("x", WEIGHTS, INPUTS, channels=ShiftAndScale(scale=False, sites=("*",))), statistics
    )
    for site in SITES.values():
        assert staged_transform(model, statistics, site, STAGES[0], 0.1) is None
        for transform in (
            staged_transform(model, statistics, site, STAGES[1]),
            staged_transform(model, statistics, site, STAGES[1], 0.1),
            staged_transform(model, statistics, site, STAGES[2]),
        ):
            assert transform is not None
            assert_same(transform.shift, shift_alone.transforms[site].shift)
            assert_same(transform.scale, torch.ones_like(transform.scale))


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_shift_and_scale_are_those_of_the_raw_activations(
    model: VideoModel, statistics: Statistics, raw: RawInputs, site: str
) -> None:
    x = np.concatenate(raw.rows[site])
    low, high = x.min(0), x.max(0)
    if pads_with_zeros(model.denoiser.get_submodule(site)):
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    half = (high - low) / 2
    threshold = float(np.median(half))
    transform = staged_transform(model, statistics, site, STAGES[2], threshold)
    assert transform is not None
    np.testing.assert_allclose(transform.shift, (low + high) / 2, atol=1e-6)
    np.testing.assert_allclose(transform.scale, np.maximum(1, half / threshold), rtol=1e-5)


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_coverage_is_that_of_the_transformed_channels(
    model: VideoModel, statistics: Statistics, raw: RawInputs, site: str
) -> None:
    """min(h_c, t) / t on average, h_c being half the width of channel c."""
    table = threshold_table(model, statistics, site, WEIGHTS, INPUTS)
    x = torch.from_numpy(np.concatenate(raw.rows[site]))
    if pads_with_zeros(model.denoiser.get_submodule(site)):
        x = torch.cat([x, torch.zeros(1, x.shape[1])])
    for place in (0, len(table.thresholds) // 2, -1):
        transform = staged_transform(model, statistics, site, STAGES[2], float(table.thresholds[place]))
        assert transform is not None
        moved = transform.apply(x)
        widths = moved.amax(0) - moved.amin(0)
        expected = float((widths / (moved.max() - moved.min())).mean())
        assert table.coverage[place] == pytest.approx(expected, rel=1e-4)
    assert (np.diff(table.coverage) >= -1e-6).all()  # thresholds descend


def test_another_threshold_can_be_shown(model: VideoModel, statistics: Statistics) -> None:
    table = threshold_table(model, statistics, SITES["attention"], WEIGHTS, INPUTS)
    other = table.showing(0.25)
    assert other.chosen == 0.25
    assert other.search is table.search
    assert {len(column) for column in table.columns().values()} == {len(table.thresholds)}
    assert list(table.columns()) == ["threshold", "relative_error", "coverage"]


def test_formats_change_the_search(model: VideoModel, statistics: Statistics) -> None:
    site = SITES["attention"]
    errors = [
        threshold_table(model, statistics, site, weights, ActivationFormat(bits)).search.errors
        for weights, bits in ((WEIGHTS, 6), (WEIGHTS, 8), (None, 6))
    ]
    assert not errors[0].equal(errors[1])
    assert not errors[0].equal(errors[2])
    assert errors[1].min() < errors[0].min()


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@pytest.mark.parametrize("by", ["step", "frame"])
@pytest.mark.parametrize("transformed", [False, True], ids=["as-it-is", "transformed"])
def test_widths_are_those_of_the_raw_activations(
    statistics: Statistics, raw: RawInputs, by: str, symmetric: bool, transformed: bool
) -> None:
    site = SITES["attention"]
    parts = raw.rows[site] if by == "step" else list(np.concatenate(raw.framed[site], axis=1))
    channels = parts[0].shape[1]
    random = torch.Generator().manual_seed(3)
    transform = ChannelTransform(torch.randn(channels, generator=random), 1 + torch.rand(channels, generator=random))
    table = channel_widths(statistics, site, by, symmetric, transform if transformed else None)
    if transformed:
        parts = [transform.apply(torch.from_numpy(x)).numpy() for x in parts]
    everything = np.concatenate(parts)
    low, high = everything.min(), everything.max()
    span = 2 * max(-low, high) if symmetric else max(high, 0) - min(low, 0)
    wide = everything.max(0) - everything.min(0)
    assert sorted(table.channel) == list(range(channels))
    assert (np.diff(wide[table.channel]) >= -1e-6).all()  # the narrowest first
    assert table.shares.shape == (channels, len(parts))
    for column, x in enumerate(parts):
        true = ((x.max(0) - x.min(0)) / span)[table.channel]
        slack = 2.01 / 255 * wide[table.channel] / span + 1e-6
        assert (table.shares[:, column] >= true - 1e-6 - slack / 200).all()
        assert (table.shares[:, column] <= true + slack).all()


def test_widths_as_columns(statistics: Statistics) -> None:
    table = channel_widths(statistics, SITES["padded"], "frame", False)
    columns = table.columns()
    assert list(columns) == ["channel", "frame", "share"]
    place = {channel: row for row, channel in enumerate(table.channel)}
    for channel, frame, share in zip(*columns.values(), strict=True):
        assert share == table.shares[place[channel], frame - 1]


def test_an_input_of_zeros_spans_nothing(statistics: Statistics) -> None:
    zeros = {"x": torch.zeros(2, 3)}
    for symmetric in (False, True):
        table = channel_widths(dataclasses.replace(statistics, low=zeros, high=zeros), "x", "step", symmetric)
        assert (table.shares == 0).all()


def test_a_site_without_frames_has_no_widths_by_frame(statistics: Statistics) -> None:
    with pytest.raises(KeyError):
        channel_widths(statistics, "time_embedding.linear_1", "frame", False)


def test_old_statistics_go_although_the_model_stays(model: VideoModel, statistics: Statistics) -> None:
    old = dataclasses.replace(statistics)
    threshold_table(model, old, SITES["attention"], WEIGHTS, INPUTS)
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None
