"""Channel tables against the same numbers taken one channel at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.channels import SORTS, channel_table, in_words, site_overview
from qvd_core.calibration.statistics import CalibrationRun, Statistics
from qvd_core.formats import ActivationFormat
from qvd_core.quantizers.uniform import affine_grid, make_grid, quantize

STEPS, CHANNELS = 3, 7


def statistics_of(**ranges: tuple[list[list[float]], list[list[float]]]) -> Statistics:
    """Statistics of sites given as name=(low, high), [steps][channels] each."""
    run = CalibrationRun("tiny", "0" * 16, "DDIMScheduler", STEPS, ("a prompt",), 0, 4, 16, 16, 1.0, 2.5)
    low = {name: torch.tensor(values[0]) for name, values in ranges.items()}
    high = {name: torch.tensor(values[1]) for name, values in ranges.items()}
    return Statistics(run, low, high, {}, {}, {}, {}, dict.fromkeys(ranges, 1))


def random_ranges(seed: int) -> tuple[list[list[float]], list[list[float]]]:
    ends = np.random.default_rng(seed).normal(size=(2, STEPS, CHANNELS)).astype(np.float32)
    return ends.min(0).tolist(), ends.max(0).tolist()


STATISTICS = statistics_of(
    first=random_ranges(1),
    second=random_ranges(2),
    silent=([[0.0] * CHANNELS] * STEPS, [[0.0] * CHANNELS] * STEPS),
    positive=([[1.0, 2.0]] * STEPS, [[3.0, 5.0]] * STEPS),
)


@pytest.mark.parametrize("bits", [3, 8, 12])
@pytest.mark.parametrize("step", [None, 0, 2], ids=["all", "first", "last"])
def test_every_row_equals_a_direct_computation(bits: int, step: int | None) -> None:
    table = channel_table(STATISTICS, "first", ActivationFormat(bits), step)
    low, high = STATISTICS.low["first"].numpy(), STATISTICS.high["first"].numpy()
    bottom, top = low.min(), high.max()
    grid = affine_grid(torch.tensor(bottom), torch.tensor(top), bits)
    for channel in range(CHANNELS):
        lowest = low[:, channel].min() if step is None else low[step, channel]
        highest = high[:, channel].max() if step is None else high[step, channel]
        assert table.channel[channel] == channel
        assert table.low[channel] == lowest
        assert table.high[channel] == highest
        assert table.coverage[channel] == pytest.approx((highest - lowest) / (top - bottom), rel=1e-6)
        fine = torch.linspace(float(lowest), float(highest), 20_001)
        assert table.codes[channel] == len(quantize(fine, grid).unique())
    assert table.available_codes == 2**bits
    assert table.median_codes == np.sort(table.codes)[(CHANNELS - 1) // 2]


def test_a_step_is_measured_against_the_grid_of_all_steps() -> None:
    everything = channel_table(STATISTICS, "first", ActivationFormat(8))
    for step in range(STEPS):
        table = channel_table(STATISTICS, "first", ActivationFormat(8), step)
        assert table.grid_ends == everything.grid_ends
        assert (table.coverage <= everything.coverage + 1e-7).all()
        assert (table.codes <= everything.codes).all()


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_levels_and_ends_are_those_of_the_quantizer(symmetric: bool) -> None:
    form = ActivationFormat(4, symmetric=symmetric)
    table = channel_table(STATISTICS, "first", form)
    low, high = STATISTICS.tensor_range("first")
    grid = make_grid(low, high, 4, symmetric)
    levels = table.levels()
    assert len(levels) == table.available_codes == (15 if symmetric else 16)
    codes = quantize(torch.from_numpy(levels), grid)
    assert codes.tolist() == list(range(grid.code_min, grid.code_max + 1))
    np.testing.assert_allclose(table.grid_ends, levels[[0, -1]], rtol=1e-6)
    assert 0 in levels


def test_a_symmetric_grid_is_twice_the_largest_magnitude_wide() -> None:
    table = channel_table(STATISTICS, "first", ActivationFormat(8, symmetric=True))
    low, high = STATISTICS.tensor_range("first")
    width = 2 * max(abs(float(low)), abs(float(high)))
    np.testing.assert_allclose(table.coverage, (table.high - table.low) / width, rtol=1e-6)


def test_a_one_sided_input_is_measured_against_the_grid_it_gets() -> None:
    """Grids always include zero, so a tensor from 1 to 5 gets one from 0 to 5: 51 codes per unit."""
    table = channel_table(STATISTICS, "positive", ActivationFormat(8))
    np.testing.assert_allclose(table.coverage, [2 / 5, 3 / 5])
    assert table.codes.tolist() == [2 * 51 + 1, 3 * 51 + 1]
    assert "2 of 2 never change sign" in in_words(table)


def test_an_input_that_is_always_zero_covers_nothing() -> None:
    table = channel_table(STATISTICS, "silent", ActivationFormat(8))
    assert (table.coverage == 0).all()
    assert (table.codes == 1).all()


@pytest.mark.parametrize("sort", SORTS)
def test_sorting_permutes_whole_rows(sort: str) -> None:
    plain = channel_table(STATISTICS, "first", ActivationFormat(8))
    table = channel_table(STATISTICS, "first", ActivationFormat(8), sort=sort)
    for name in ("low", "high", "coverage", "codes"):
        np.testing.assert_array_equal(getattr(table, name), getattr(plain, name)[table.channel])
    keys = {"channel": table.channel, "range": table.high - table.low, "centre": table.high + table.low}
    assert (np.diff(keys[sort]) >= 0).all()
    assert table.sort == sort
    if sort == "range":
        assert (np.diff(table.coverage) >= 0).all()


def test_overview_is_the_mean_of_each_table() -> None:
    for step in (None, 1):
        rows = site_overview(STATISTICS, ["second", "first"], step)
        assert [row.site for row in rows] == ["second", "first"]
        for row in rows:
            table = channel_table(STATISTICS, row.site, ActivationFormat(8), step)
            assert row.channels == CHANNELS
            assert row.mean == pytest.approx(float(table.coverage.mean()))
            assert row.least == float(table.coverage.min())


def test_the_words_carry_the_numbers() -> None:
    table = channel_table(STATISTICS, "first", ActivationFormat(4), step=1)
    text = in_words(table)
    assert text.startswith("At step 2,")
    assert f"{CHANNELS} channels spans {np.median(table.coverage):.0%}" in text
    assert f"at 4 bits, {table.median_codes} of its 16 codes" in text
