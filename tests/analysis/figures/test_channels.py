"""Figures of channels against their tables: whatever is drawn is a number of the table."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.channels import SORTS
from analysis.drawing import Bars, Heatmap, Line, Points, Rule, number
from analysis.figures.channels import MAX_BARS, SORT_WORDS, ranges, thresholds, widths
from tests.analysis import tables


def bars_and_rules(drawing) -> tuple[Bars, list[Rule]]:
    *rules, bars = drawing.marks
    return bars, rules


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("step", [None, 2], ids=["all", "one"])
def test_a_bar_reaches_from_the_smallest_to_the_largest_value(sort: str, step: int | None) -> None:
    table = tables.channels(step=step, sort=sort)
    drawing = ranges(table)
    bars, _ = bars_and_rules(drawing)
    np.testing.assert_array_equal(bars.x, np.arange(9))
    np.testing.assert_array_equal(bars.low, table.low)
    np.testing.assert_array_equal(bars.high, table.high)
    rows = zip(bars.hover, table.channel, table.low, table.high, table.coverage, table.codes, strict=True)
    for text, channel, low, high, coverage, codes in rows:
        assert text == (
            f"channel {channel}<br>{number(low)} to {number(high)}<br>{coverage:.1%} of the grid, up to {codes} codes"
        )
    assert SORT_WORDS[sort] in drawing.x.title


@pytest.mark.parametrize(("count", "per_bar"), [(512, 1), (513, 2), (1300, 3), (5120, 10)])
def test_neighbours_share_a_bar_that_keeps_their_extremes(count: int, per_bar: int) -> None:
    table = tables.channels(count, sort="range")
    drawing = ranges(table)
    bars, _ = bars_and_rules(drawing)
    assert len(bars.x) == len(bars.hover) == -(-count // per_bar) <= MAX_BARS
    for place, (low, high) in enumerate(zip(bars.low, bars.high, strict=True)):
        own = slice(place * per_bar, (place + 1) * per_bar)
        assert low == table.low[own].min()
        assert high == table.high[own].max()
        assert bars.x[place] - (per_bar - 1) / 2 == own.start
        assert f"{number(low)} to {number(high)}" in bars.hover[place]
    assert (f"{per_bar} neighbours per bar, extremes kept" in drawing.x.title) == (per_bar > 1)
    assert (f"{per_bar} channels per bar" in drawing.alt_text) == (per_bar > 1)
    if per_bar > 1:
        assert bars.hover[-1].startswith(f"places {(len(bars.x) - 1) * per_bar} to {count - 1}<br>")


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@pytest.mark.parametrize(("bits", "shown"), [(3, True), (5, True), (6, False), (16, False)])
def test_levels_are_drawn_where_the_eye_can_tell_them_apart(bits: int, shown: bool, symmetric: bool) -> None:
    table = tables.channels(bits=bits, symmetric=symmetric)
    drawing = ranges(table)
    _, rules = bars_and_rules(drawing)
    assert all(rule.axis == "y" for rule in rules)
    bottom, top = table.grid_ends
    values = [rule.value for rule in rules if not rule.label]
    np.testing.assert_allclose(values, table.levels() if shown else [], rtol=1e-6)
    labels = {rule.label: rule.value for rule in rules if rule.label}
    assert labels == {f"highest code: {number(top)}": top, f"lowest code: {number(bottom)}": bottom}
    assert drawing.y.grid is not shown


def test_everything_is_inside_the_frame() -> None:
    for symmetric in (False, True):
        table = tables.channels(symmetric=symmetric)
        drawing = ranges(table)
        assert drawing.y.low < min(table.low.min(), table.grid_ends[0])
        assert drawing.y.high > max(table.high.max(), table.grid_ends[1])


def test_the_alternative_text_names_the_extremes() -> None:
    table = tables.channels(step=1, frame=2)
    alt = ranges(table).alt_text
    narrow, wide = table.coverage.argmin(), table.coverage.argmax()
    assert "9 input channels of layer at step 2, frame 3, one bar per channel" in alt
    assert "8-bit grid reaches from {:.3g} to {:.3g}".format(*table.grid_ends) in alt
    assert f"Narrowest: channel {table.channel[narrow]}, {table.low[narrow]:.3g} to {table.high[narrow]:.3g}" in alt
    assert f"widest: channel {table.channel[wide]}, {table.low[wide]:.3g} to {table.high[wide]:.3g}" in alt


def test_a_transformed_input_says_so_on_its_axis() -> None:
    from qvd_core.methods.scri import transform_at

    statistics = tables.statistics_of(9)
    low, high = statistics.low["layer"].amin(0), statistics.high["layer"].amax(0)
    table = tables.channels(transform=transform_at((low + high) / 2, (high - low) / 2, float("inf")))
    assert ranges(table).y.title.startswith("transformed value")
    assert ranges(tables.channels()).y.title.startswith("value")


@pytest.mark.parametrize("by", ["step", "frame"])
@pytest.mark.parametrize(("count", "per_row"), [(9, 1), (512, 1), (513, 2), (1300, 3)])
def test_a_row_is_the_width_of_a_channel_or_the_widest_of_neighbours(count: int, per_row: int, by: str) -> None:
    table = tables.widths(count, by)
    drawing = widths(table)
    [heat] = drawing.marks
    assert isinstance(heat, Heatmap)
    assert len(heat.z) == len(heat.y) == -(-count // per_row) <= MAX_BARS
    for place, row in enumerate(heat.z):
        own = slice(place * per_row, (place + 1) * per_row)
        np.testing.assert_array_equal(row, table.shares[own].max(0))
        assert heat.y[place] - (per_row - 1) / 2 == own.start
    np.testing.assert_array_equal(heat.x, np.arange(table.shares.shape[1]) + 1)
    assert (heat.low, heat.high) == (0, 1)
    assert ("the widest kept" in drawing.y.title) == (per_row > 1)
    assert heat.column == by
    assert f"widest reaches {table.shares.max():.0%}, the median {np.median(table.shares):.0%}." in drawing.alt_text


def test_the_search_of_a_threshold_is_drawn_as_it_is() -> None:
    table = tables.thresholds().showing(1.75)
    drawing = thresholds(table)
    errors, coverage, best, rule = drawing.marks
    assert isinstance(errors, Line)
    assert isinstance(coverage, Line)
    np.testing.assert_array_equal(errors.x, table.thresholds)
    np.testing.assert_array_equal(errors.y, table.relative_errors)
    np.testing.assert_array_equal(coverage.x, table.thresholds)
    np.testing.assert_array_equal(coverage.y, table.coverage)
    assert isinstance(best, Points)
    assert best.y.tolist() == [table.relative_errors.min()]
    assert best.x.tolist() == [table.thresholds[table.relative_errors.argmin()]]
    assert rule == Rule("x", 1.75, label="shown: t = 1.75")
    least = f"least at {number(best.x[0])}, {best.y[0]:.2f} times that without scaling; shown is 1.75."
    assert least in drawing.alt_text
