"""The map of layers and steps against its table."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.drawing import Drawing, Heatmap
from analysis.figures.site_map import LABELS, LOG, site_map
from analysis.site_map import SiteMap
from tests.analysis import tables


def heat_of(drawing: Drawing) -> Heatmap:
    [heat] = drawing.marks
    assert isinstance(heat, Heatmap)
    return heat


@pytest.mark.parametrize("metric", LABELS)
def test_cells_are_those_of_the_table(metric: str) -> None:
    table = tables.mapped(metric)
    drawing = site_map(table)
    heat = heat_of(drawing)
    np.testing.assert_array_equal(heat.z, table.values)
    assert heat.names == table.sites
    np.testing.assert_array_equal(heat.x, np.arange(tables.STEPS) + 1)
    np.testing.assert_array_equal(heat.y, np.arange(len(table.sites)))
    assert heat.log is (metric in LOG)
    assert drawing.y.reverse  # the first layer on top
    assert drawing.y.low == -0.5
    assert drawing.y.high == len(table.sites) - 0.5


@pytest.mark.parametrize("metric", LABELS)
def test_colours_span_what_there_is(metric: str) -> None:
    heat = heat_of(site_map(tables.mapped(metric)))
    if metric == "coverage":
        assert (heat.low, heat.high) == (0, 1)
    else:
        assert heat.high == pytest.approx(heat.z.max())
        assert heat.low == pytest.approx(max(heat.z.min(), heat.z.max() * 1e-6) if heat.log else heat.z.min())
    assert heat.low < heat.high


@pytest.mark.parametrize("metric", LABELS)
@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[np.nan, np.nan]], [[0.5, 0.5]], [[1e-30, 1.0]]], ids=str)
def test_a_logarithm_is_taken_of_positive_numbers_alone(metric: str, values: list[list[float]]) -> None:
    table = SiteMap(metric, ("a",), np.array(values, np.float32))
    heat = heat_of(site_map(table))
    assert heat.low < heat.high
    assert np.isfinite([heat.low, heat.high]).all()
    if heat.log:
        assert heat.low > 0
        assert not (heat.z <= 0).any()
        positive = table.values > 0
        np.testing.assert_array_equal(heat.z[positive], table.values[positive])  # far below the colours too
    else:
        np.testing.assert_array_equal(heat.z, table.values)


def test_ticks_stand_where_parts_of_the_network_begin() -> None:
    ticks = site_map(tables.mapped(sites=12)).y.ticks
    assert ticks == ((0, "down_blocks.0"), (4, "down_blocks.1"), (8, "down_blocks.2"))
    many = site_map(tables.mapped(sites=534)).y.ticks
    assert many is not None
    assert len(many) <= 31


def test_the_alternative_text_names_the_extremes() -> None:
    table = tables.mapped("error")
    alt = site_map(table).alt_text
    high, low = (np.unravel_index(i, table.values.shape) for i in (table.values.argmax(), table.values.argmin()))
    assert "Map of rounding error of 12 layers at 4 steps." in alt
    assert f"Highest {table.values[high]:.3g} at {table.sites[high[0]]}, step {high[1] + 1};" in alt
    assert f"lowest {table.values[low]:.3g} at {table.sites[low[0]]}, step {low[1] + 1}." in alt
    nothing = SiteMap("error", ("a",), np.full((1, 2), np.nan, np.float32))
    assert site_map(nothing).alt_text == "Map of rounding error by layer and step: nothing is known."
