"""Figures of temporal features against their tables, and against counts taken value by value."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.drawing import Band, Bars, Drawing, Heatmap, Line, Points, Rule
from analysis.figures.temporal import MAX_PLACES, code_use, distribution, search, similarity, staircases
from analysis.htdq import htdq_table
from analysis.temporal import histogram, symlog
from qvd_core.formats import HTDQ
from qvd_core.models.loader import VideoModel
from tests.analysis import tables

STEPS = 5


def only(drawing: Drawing, kind: type) -> list:
    return [mark for mark in drawing.marks if isinstance(mark, kind)]


@pytest.mark.parametrize("bits", [3, 8])
def test_the_distribution_counts_every_value(bits: int) -> None:
    table = tables.temporal(bits)
    drawing = distribution(table)
    [bars] = only(drawing, Bars)
    counted = histogram(table.values)
    assert bars.high.sum() == table.values.size
    assert (bars.low > 0).all()
    for x, count in zip(bars.x, bars.high, strict=True):
        places = symlog(table.values.astype(float), counted.unit)
        near = 1e-9
        inside = np.sum((places >= x - bars.width / 2 + near) & (places < x + bars.width / 2 - near))
        around = np.sum((places >= x - bars.width / 2 - near) & (places < x + bars.width / 2 + near))
        assert inside <= count <= around
    assert all(text.endswith(f"<br>{int(n):,} values") for n, text in zip(bars.high, bars.hover, strict=True))


@pytest.mark.parametrize(("bits", "shown"), [(3, True), (5, True), (6, False)])
def test_the_band_is_what_becomes_zero_and_levels_are_those_of_the_grid(bits: int, shown: bool) -> None:
    table = tables.temporal(bits)
    drawing = distribution(table)
    unit = histogram(table.values).unit
    [band] = only(drawing, Band)
    half = float(symlog(np.array(table.scale / 2), unit))
    assert (band.low, band.high) == pytest.approx((max(-half, drawing.x.low), min(half, drawing.x.high)))
    inside = np.abs(symlog(table.values, unit)) < half
    assert np.mean(inside) == pytest.approx(table.zero_share)
    assert band.label == f"rounded to zero at {bits} bits: {table.zero_share:.1%}"
    places = [rule.value for rule in only(drawing, Rule)]
    np.testing.assert_allclose(places, symlog(table.levels, unit) if shown else [], rtol=1e-6)
    assert f"rounds values within {table.scale / 2:.2g} of zero to zero: {table.zero_share:.1%}" in drawing.alt_text


def test_ticks_stand_where_their_labels_say() -> None:
    drawing = distribution(tables.temporal())
    unit = histogram(tables.temporal().values).unit
    assert drawing.x.ticks is not None
    values = [float(text.replace("−", "-")) for _, text in drawing.x.ticks]
    assert 0 in values
    np.testing.assert_allclose([at for at, _ in drawing.x.ticks], symlog(np.array(values), unit), rtol=1e-6)


@pytest.mark.parametrize("method", [HTDQ(), HTDQ(port=True)], ids=["searched", "port"])
def test_staircases_are_the_table_on_symmetric_log_axes(model: VideoModel, method: HTDQ) -> None:
    table = htdq_table(model, STEPS, 4, method)
    drawing = staircases(table)
    unit = histogram(table.values).unit
    identity, flat, log = only(drawing, Line)
    x = symlog(table.stairs[0], unit)
    for line in (identity, flat, log):
        np.testing.assert_array_equal(line.x, x)
    np.testing.assert_array_equal(identity.y, x)
    np.testing.assert_array_equal(flat.y, symlog(table.stairs[1], unit))
    np.testing.assert_array_equal(log.y, symlog(table.stairs[2], unit))
    assert drawing.x.ticks == drawing.y.ticks
    assert drawing.y.low <= min(flat.y.min(), log.y.min())
    assert drawing.y.high >= max(flat.y.max(), log.y.max())
    assert f"both {table.bits}-bit grids" in drawing.alt_text


@pytest.mark.parametrize("method", [HTDQ(), HTDQ(sign_inside=False), HTDQ(port=True)], ids=["in", "out", "port"])
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_bars_of_codes_add_up_to_all_values(model: VideoModel, bits: int, method: HTDQ) -> None:
    table = htdq_table(model, STEPS, bits, method)
    drawing = code_use(table)
    for line, grid in zip(only(drawing, Line), (table.uniform, table.logarithmic), strict=True):
        count, places = len(grid.use), len(line.x) - 1
        assert places <= MAX_PLACES
        assert line.stepped
        assert line.filled
        assert (line.x[0], line.x[-1], line.y[-1]) == (0, 1, line.y[-2])
        assert len(line.hover) == len(line.x)
        starts = np.round(line.x * count).astype(int)
        for start, end, share in zip(starts, starts[1:], line.y, strict=False):
            used = grid.use[start:end].sum() / table.values.size
            assert share == pytest.approx(used) if used else share == drawing.y.low
    flat, log = table.uniform, table.logarithmic
    assert f"uses {flat.used} of {len(flat.use)}, HiDi-TQ {log.used} of {len(log.use)}." in drawing.alt_text


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(
    "method",
    [HTDQ(), HTDQ(coefficient=0.3), HTDQ(coefficient=900.0), HTDQ(port=True)],
    ids=["best", "low", "high", "port"],
)
def test_the_search_is_drawn_as_it_is_and_the_choice_where_it_lies(model: VideoModel, method: HTDQ, bits: int) -> None:
    table = htdq_table(model, STEPS, bits, method)
    drawing = search(table)
    columns = table.columns()
    lost = np.maximum(0, 1 - columns["td_score"] / table.td_score)
    for line, values in zip(only(drawing, Line), (columns["k"], columns["l2"], lost), strict=True):
        np.testing.assert_array_equal(line.x, columns["coefficient"])
        shown = np.isfinite(line.y)
        np.testing.assert_array_equal(shown, values > 0)
        np.testing.assert_allclose(line.y[shown], values[shown], rtol=1e-12)
    [chosen], [rule] = only(drawing, Points), only(drawing, Rule)
    assert chosen.x.tolist() == [rule.value] == [table.coefficient]
    assert chosen.y.tolist() == [table.logarithmic.k]
    assert drawing.x.low < table.coefficient < drawing.x.high
    assert drawing.x.low < columns["coefficient"].min()
    assert drawing.x.high > columns["coefficient"].max()
    assert f"chosen is {table.coefficient:.3g}." in drawing.alt_text


def test_a_matrix_is_drawn_as_it_is() -> None:
    matrix = tables.temporal(3).rounded_similarity
    drawing = similarity(matrix, "3-bit uniform grid", -0.25)
    [heat] = only(drawing, Heatmap)
    np.testing.assert_array_equal(heat.z, matrix)
    np.testing.assert_array_equal(heat.x, np.arange(1, 7))
    np.testing.assert_array_equal(heat.y, np.arange(1, 7))
    assert (heat.low, heat.high) == (-0.25, 1)
    assert drawing.y.reverse  # the first step on top
    assert drawing.square
    assert drawing.title == "3-bit uniform grid"
    small = np.array([[1, 0.5, 0.25], [0.5, 1, 0.75], [0.25, 0.75, 1]], dtype=np.float32)
    assert "Lowest 0.250, between steps 1 and 3; mean 0.667." in similarity(small, "Full precision", 0).alt_text
