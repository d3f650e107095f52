"""Channel tables against the same numbers taken from raw activations, one channel at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from analysis.channels import SORTS, ChannelTable, channel_ranges, channel_table, in_words
from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import CalibrationError
from qvd_core.formats import ActivationFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from tests.analysis.conftest import RawInputs

TEMPORAL = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "up_blocks.1.resnets.0.conv1"
TEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
FEATURES = "down_blocks.0.resnets.0.time_emb_proj"
SITES = (TEMPORAL, CONVOLUTION, TEXT, FEATURES)
FORMS = {
    "affine-3": ActivationFormat(3),
    "affine-8": ActivationFormat(8),
    "affine-16": ActivationFormat(16),
    "symmetric-8": ActivationFormat(8, symmetric=True),
}


def some_transform(channels: int) -> ChannelTransform:
    random = torch.Generator().manual_seed(channels)
    return ChannelTransform(torch.randn(channels, generator=random), 1 + 4 * torch.rand(channels, generator=random))


def grid_by_hand(low: float, high: float, form: ActivationFormat) -> tuple[float, int, int, int]:
    """(scale, zero point, lowest code, highest code) of the per-tensor grid, as documented in `quantizers.uniform`."""
    if form.symmetric:
        most = 2 ** (form.bits - 1) - 1
        return max(abs(low), abs(high)) / most, 0, -most, most
    least, most = -(2 ** (form.bits - 1)), 2 ** (form.bits - 1) - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (most - least)
    return scale, round(least - low / scale), least, most


def codes_by_hand(x: np.ndarray, low: float, high: float, form: ActivationFormat) -> np.ndarray:
    scale, zero, least, most = grid_by_hand(low, high, form)
    return np.clip(np.round(x / scale) + zero, least, most).astype(int)


@pytest.mark.parametrize("transformed", [False, True], ids=["as-it-is", "transformed"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("site", SITES)
def test_over_all_steps_every_row_is_that_of_the_raw_activations(
    statistics: Statistics, raw: RawInputs, site: str, form: ActivationFormat, transformed: bool
) -> None:
    x = torch.from_numpy(np.concatenate(raw.rows[site]))
    transform = some_transform(x.shape[1]) if transformed else None
    x = (x if transform is None else transform.apply(x)).numpy()
    table = channel_table(statistics, site, form, transform=transform)
    np.testing.assert_allclose(table.low, x.min(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(table.high, x.max(0), rtol=1e-6, atol=1e-7)
    low, high = float(x.min()), float(x.max())
    scale, zero, least, most = grid_by_hand(low, high, form)
    width = (most - least) * scale
    np.testing.assert_allclose(table.coverage, (x.max(0) - x.min(0)) / width, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(table.grid_ends, ((least - zero) * scale, (most - zero) * scale), rtol=1e-5)
    spanned = codes_by_hand(x.max(0), low, high, form) - codes_by_hand(x.min(0), low, high, form) + 1
    assert np.abs(table.codes - spanned).max() <= 1  # fp32 and fp64 may part at a tie
    if form.bits < 16:
        np.testing.assert_array_equal(table.codes, spanned)
    assert table.transformed is transformed
    assert table.channel.tolist() == list(range(x.shape[1]))
    assert table.available_codes == most - least + 1
    used = [len(np.unique(column)) for column in codes_by_hand(x, low, high, form).T]
    assert (table.codes + (form.bits == 16) >= used).all()


@pytest.mark.parametrize("transformed", [False, True], ids=["as-it-is", "transformed"])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("site", SITES)
def test_ranges_of_a_step_hold_the_true_ones_closely(
    statistics: Statistics, raw: RawInputs, site: str, step: int, transformed: bool
) -> None:
    assert_just_outside(statistics, raw, site, raw.rows[site][step], transformed, step=step)


@pytest.mark.parametrize("transformed", [False, True], ids=["as-it-is", "transformed"])
@pytest.mark.parametrize("frame", [0, 3])
@pytest.mark.parametrize("site", [TEMPORAL, CONVOLUTION, TEXT])
def test_ranges_of_a_frame_hold_the_true_ones_closely(
    statistics: Statistics, raw: RawInputs, site: str, frame: int, transformed: bool
) -> None:
    seen = np.concatenate([step[frame] for step in raw.framed[site]])
    assert_just_outside(statistics, raw, site, seen, transformed, frame=frame)


def assert_just_outside(
    statistics: Statistics, raw: RawInputs, site: str, seen: np.ndarray, transformed: bool, **at: int
) -> None:
    """Extremes of steps and frames are kept in 255ths of the channel's range, rounded outwards."""
    everything = np.concatenate(raw.rows[site])
    slack = 1.001 / 255 * (everything.max(0) - everything.min(0)) + 1e-6
    transform = None
    if transformed:
        transform = some_transform(seen.shape[1])
        seen, slack = transform.apply(torch.from_numpy(seen)).numpy(), slack / transform.scale.numpy()
    table = channel_table(statistics, site, ActivationFormat(8), transform=transform, **at)
    for beyond in (seen.min(0) - table.low, table.high - seen.max(0)):
        assert (beyond >= -1e-6 - slack / 200).all()
        assert (beyond <= slack + 1e-6).all()
    whole = channel_table(statistics, site, ActivationFormat(8), transform=transform)
    assert table.grid_ends == whole.grid_ends  # a static grid is that of all steps
    low, high = whole.low.min(), whole.high.max()
    expected = codes_by_hand(table.high, low, high, table.form) - codes_by_hand(table.low, low, high, table.form) + 1
    np.testing.assert_array_equal(table.codes, expected)
    np.testing.assert_allclose(
        table.coverage, (table.high - table.low) / (max(high, 0) - min(low, 0)), rtol=1e-5, atol=1e-7
    )
    assert (table.coverage <= whole.coverage + 1e-6).all()


@pytest.mark.parametrize("site", [TEMPORAL, CONVOLUTION, TEXT])
def test_of_a_step_and_a_frame_together_bounds_are_drawn(statistics: Statistics, raw: RawInputs, site: str) -> None:
    """What both allow: never narrower than the truth, never wider than either alone."""
    for step in range(2):
        for frame in range(4):
            seen = raw.framed[site][step][frame]
            low, high = (t.numpy() for t in channel_ranges(statistics, site, step, frame))
            assert (low <= seen.min(0) + 1e-6).all()
            assert (high >= seen.max(0) - 1e-6).all()
            for alone in (channel_ranges(statistics, site, step), channel_ranges(statistics, site, frame=frame)):
                assert (low >= alone[0].numpy()).all()
                assert (high <= np.maximum(alone[1].numpy(), low)).all()
    assert ", at most" in in_words(channel_table(statistics, site, ActivationFormat(8), 0, frame=1))


def test_a_site_without_ranges_of_frames_says_so(statistics: Statistics) -> None:
    with pytest.raises(CalibrationError, match=f"no ranges of single frames for {FEATURES}"):
        channel_table(statistics, FEATURES, ActivationFormat(8), frame=0)


@pytest.mark.parametrize("transformed", [False, True], ids=["as-it-is", "transformed"])
@pytest.mark.parametrize(
    "form", [ActivationFormat(4), ActivationFormat(8, symmetric=True)], ids=["affine", "symmetric"]
)
@pytest.mark.parametrize("step", [None, 0, 1], ids=["all", "first", "last"])
def test_the_error_is_that_of_rounding_the_sampled_tokens(
    statistics: Statistics, form: ActivationFormat, step: int | None, transformed: bool
) -> None:
    for site in SITES:
        kept = statistics.tokens[site].double().numpy()
        x = kept[slice(None) if step is None else slice(step, step + 1)].reshape(-1, kept.shape[-1])
        channels = x.shape[1]
        transform = (
            some_transform(channels) if transformed else ChannelTransform(torch.zeros(channels), torch.ones(channels))
        )
        shift, scale = (t.double().numpy() for t in (transform.shift, transform.scale))
        low = ((statistics.low[site].double().numpy() - shift) / scale).min()
        high = ((statistics.high[site].double().numpy() - shift) / scale).max()
        moved = (x - shift) / scale
        size, zero, _, _ = grid_by_hand(low, high, form)
        restored = (codes_by_hand(moved, low, high, form) - zero) * size * scale + shift
        expected = ((restored - x) ** 2).mean(0) / (x**2).mean()
        table = channel_table(statistics, site, form, step, transform=transform if transformed else None)
        np.testing.assert_allclose(table.error, expected, rtol=2e-3, atol=1e-6 * expected.max())


@pytest.mark.parametrize("sort", SORTS)
def test_sorting_permutes_whole_rows(statistics: Statistics, sort: str) -> None:
    plain = channel_table(statistics, CONVOLUTION, ActivationFormat(8))
    table = channel_table(statistics, CONVOLUTION, ActivationFormat(8), sort=sort)
    assert sorted(table.channel) == plain.channel.tolist()
    for name, column in table.columns().items():
        np.testing.assert_array_equal(column, plain.columns()[name][table.channel])
    keys = {
        "channel": table.channel,
        "range": table.high - table.low,
        "centre": table.high + table.low,
        "error": -table.error,
    }
    assert (np.diff(keys[sort]) >= 0).all()
    assert table.sort == sort
    assert len({len(column) for column in table.columns().values()}) == 1


def edited(statistics: Statistics, low: list[float], high: list[float]) -> Statistics:
    """Statistics of one step of a site "x" with these extremes, and as tokens its middles."""
    ends = torch.tensor([low]), torch.tensor([high])
    tokens = ((ends[0] + ends[1]) / 2)[:, None, None]
    return dataclasses.replace(statistics, low={"x": ends[0]}, high={"x": ends[1]}, tokens={"x": tokens})


def test_ties_are_in_order_of_the_channels(statistics: Statistics) -> None:
    same = edited(statistics, [0.0, -1.0, 0.0, -1.0], [1.0, 0.0, 1.0, 0.0])
    for sort, order in {"range": [0, 1, 2, 3], "centre": [1, 3, 0, 2]}.items():
        assert channel_table(same, "x", ActivationFormat(8), sort=sort).channel.tolist() == order


def test_a_one_sided_input_is_measured_against_the_grid_it_gets(statistics: Statistics) -> None:
    """Grids always include zero, so a tensor from 1 to 5 gets one from 0 to 5: 51 codes per unit."""
    table = channel_table(edited(statistics, [1.0, 2.0], [3.0, 5.0]), "x", ActivationFormat(8))
    np.testing.assert_allclose(table.coverage, [2 / 5, 3 / 5])
    assert table.codes.tolist() == [2 * 51 + 1, 3 * 51 + 1]
    assert table.median_codes == 2 * 51 + 1  # of two in the middle, the lower
    assert "2 of 2 never change sign" in in_words(table)


def test_an_input_that_is_always_zero_covers_nothing(statistics: Statistics) -> None:
    for symmetric in (False, True):
        table = channel_table(edited(statistics, [0.0] * 3, [0.0] * 3), "x", ActivationFormat(8, symmetric=symmetric))
        assert table.coverage.tolist() == table.error.tolist() == [0.0] * 3
        assert table.codes.tolist() == [1] * 3


def words_of(statistics: Statistics, **options: int) -> tuple[ChannelTable, str]:
    table = channel_table(statistics, TEMPORAL, ActivationFormat(4), **options)
    return table, in_words(table)


def test_the_words_carry_the_numbers(statistics: Statistics) -> None:
    table, text = words_of(statistics, step=1)
    assert text.startswith("At step 2, the median of this input's 16 channels")
    assert f"spans {np.median(table.coverage):.0%} of the grid" in text
    assert f"at 4 bits, {table.median_codes} of its 16 codes" in text
    assert words_of(statistics)[1].startswith("Over all steps,")
    assert words_of(statistics, frame=2)[1].startswith("Over all steps in frame 3,")
    moved = channel_table(statistics, TEMPORAL, ActivationFormat(4), transform=some_transform(16))
    assert "this transformed input's 16 channels" in in_words(moved)
