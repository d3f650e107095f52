"""Figures against their tables: whatever is drawn is a number of the table, nothing more and nothing less."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from plotly import graph_objects as go

from analysis.channels import SORTS, ChannelTable, channel_table
from analysis.figures import MAX_BARS, channel_ranges, feature_distribution, step_similarity
from analysis.temporal import TemporalTable, histogram, symlog, temporal_table
from qvd_core.calibration.statistics import CalibrationRun, Statistics
from qvd_core.calibration.temporal_features import TemporalFeatures
from qvd_core.formats import ActivationFormat

STEPS = 4


def channels(count: int = 9, bits: int = 8, **options: Any) -> ChannelTable:
    ends = np.random.default_rng(count).normal(size=(2, STEPS, count)).astype(np.float32)
    low, high = (torch.from_numpy(side) for side in (ends.min(0), ends.max(0)))
    run = CalibrationRun("tiny", "0" * 16, "DDIMScheduler", STEPS, ("a prompt",), 0, 4, 16, 16, 1.0, 2.5)
    statistics = Statistics(run, {"layer": low}, {"layer": high}, {}, {}, {}, {}, {"layer": 1})
    return channel_table(statistics, "layer", ActivationFormat(bits), **options)


def temporal(bits: int = 8) -> TemporalTable:
    values = np.random.default_rng(0).standard_t(2, size=(6, 40)).astype(np.float32)
    return temporal_table(TemporalFeatures(torch.linspace(999, 0, 6), torch.from_numpy(values)), bits)


def lines(figure: go.Figure, axis: str) -> list[float]:
    return [shape[f"{axis}0"] for shape in figure.layout.shapes if shape.type == "line"]


FIGURES = {
    "channels": lambda: channel_ranges(channels()),
    "many-channels": lambda: channel_ranges(channels(1300)),
    "distribution": lambda: feature_distribution(temporal()),
    "similarity": lambda: step_similarity(temporal().similarity, "Full precision", 0.0),
}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("step", [None, 2], ids=["all", "one"])
def test_a_bar_reaches_from_the_smallest_to_the_largest_value(sort: str, step: int | None) -> None:
    table = channels(step=step, sort=sort)
    [bars] = channel_ranges(table).data
    np.testing.assert_array_equal(bars.base, table.low)
    np.testing.assert_array_equal(bars.y, table.high - table.low)
    np.testing.assert_array_equal(bars.x, np.arange(9))
    expected = [table.channel, table.coverage, table.codes, table.low, table.high]
    np.testing.assert_array_equal(bars.customdata, np.stack(expected, axis=1).astype(np.float32))


@pytest.mark.parametrize(("count", "per_bar"), [(512, 1), (513, 2), (1300, 3)])
def test_neighbours_share_a_bar_that_keeps_their_extremes(count: int, per_bar: int) -> None:
    table = channels(count, sort="range")
    figure = channel_ranges(table)
    [bars] = figure.data
    assert len(bars.x) == -(-count // per_bar) <= MAX_BARS
    for number, (base, height) in enumerate(zip(bars.base, bars.y, strict=True)):
        own = slice(number * per_bar, (number + 1) * per_bar)
        assert base == table.low[own].min()
        assert height == table.high[own].max() - table.low[own].min()
        assert bars.x[number] == number * per_bar
    said = f"{per_bar} neighbours per bar, extremes kept"
    assert (said in figure.layout.xaxis.title.text) == (per_bar > 1)
    assert (f"{per_bar} channels per bar" in figure.layout.meta["alt_text"]) == (per_bar > 1)


@pytest.mark.parametrize(("bits", "drawn"), [(3, 8), (5, 32), (6, 0)])
def test_levels_are_drawn_where_the_eye_can_tell_them_apart(bits: int, drawn: int) -> None:
    table = channels(bits=bits)
    figure = channel_ranges(table)
    expected = [*table.levels()[:drawn], *table.grid_ends]
    np.testing.assert_allclose(lines(figure, "y"), expected, rtol=1e-6)
    assert all(shape.layer == "below" for shape in figure.layout.shapes)
    np.testing.assert_allclose(sorted(note.y for note in figure.layout.annotations), table.grid_ends)
    assert lines(feature_distribution(temporal(bits)), "x") == pytest.approx(
        [float(x) for x in symlog(temporal(bits).levels, histogram(temporal().values).unit)] if drawn else []
    )


def test_everything_drawn_is_inside_the_frame() -> None:
    table = channels()
    bottom, top = channel_ranges(table).layout.yaxis.range
    assert bottom < min(table.low.min(), table.grid_ends[0])
    assert top > max(table.high.max(), table.grid_ends[1])


@pytest.mark.parametrize("bits", [3, 8])
def test_the_distribution_counts_every_value(bits: int) -> None:
    table = temporal(bits)
    figure = feature_distribution(table)
    [bars] = figure.data
    assert sum(bars.y) == table.values.size
    unit = histogram(table.values).unit
    for x, y, (left, right) in zip(bars.x, bars.y, bars.customdata, strict=True):
        # The edges travel in single precision: a value beside one may fall on either side.
        near = 1e-6 * max(abs(left), abs(right))
        inside = np.sum((table.values >= left + near) & (table.values < right - near))
        around = np.sum((table.values >= left - near) & (table.values < right + near))
        assert inside <= y <= around
        middle = (symlog(np.float64(left), unit) + symlog(np.float64(right), unit)) / 2
        assert x == pytest.approx(middle, abs=1e-5)
    band = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert [band.x0, band.x1] == pytest.approx([-symlog(table.scale / 2, unit), symlog(table.scale / 2, unit)])
    assert f"{table.zero_share:.1%}" in figure.layout.annotations[0].text


def test_ticks_stand_where_their_labels_say() -> None:
    figure = feature_distribution(temporal())
    unit = histogram(temporal().values).unit
    axis = figure.layout.xaxis
    values = [float(text.replace("−", "-")) for text in axis.ticktext]
    assert 0 in values
    np.testing.assert_allclose(axis.tickvals, symlog(np.array(values), unit), rtol=1e-6)


def test_the_matrix_is_drawn_as_it_is() -> None:
    table = temporal(3)
    figure = step_similarity(table.rounded_similarity, "3-bit uniform grid", -0.25)
    [heatmap] = figure.data
    np.testing.assert_array_equal(heatmap.z, table.rounded_similarity)
    np.testing.assert_array_equal(heatmap.x, np.arange(1, 7))
    np.testing.assert_array_equal(heatmap.y, np.arange(1, 7))
    assert (heatmap.zmin, heatmap.zmax) == (-0.25, 1)
    assert list(figure.layout.yaxis.range) == [6.5, 0.5]  # the first step on top


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_light_and_dark_and_speaks(name: str) -> None:
    figure = FIGURES[name]()
    layout = figure.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.family == "inherit"
    assert layout.xaxis.title.text
    assert layout.yaxis.title.text
    assert layout.uirevision
    assert layout.height
    assert len(layout.meta["alt_text"]) > 60
    assert "nan" not in layout.meta["alt_text"]
    # Only what tells data from quantization has a colour of its own.
    assert layout.font.color is None


@pytest.mark.parametrize("name", FIGURES)
def test_arrays_travel_packed_and_never_in_double_precision(name: str) -> None:
    payload = json.loads(json.dumps(FIGURES[name]().to_dict()))
    packed = [v for trace in payload["data"] for v in trace.values() if isinstance(v, dict) and "bdata" in v]
    assert packed
    for array in packed:
        assert array["dtype"] in ("f4", "i4", "i2", "i1")
        assert base64.b64decode(array["bdata"])
    # plotly.js reads this one property only as a plain list.
    assert all(isinstance(trace.get("base", []), list) for trace in payload["data"])
    assert len(json.dumps(payload)) < 60_000


def test_alternative_texts_name_the_extremes() -> None:
    table = channels()
    alt = channel_ranges(table).layout.meta["alt_text"]
    narrow, wide = table.coverage.argmin(), table.coverage.argmax()
    assert f"Narrowest: channel {table.channel[narrow]}, {table.low[narrow]:.3g} to {table.high[narrow]:.3g}" in alt
    assert f"widest: channel {table.channel[wide]}, {table.low[wide]:.3g} to {table.high[wide]:.3g}" in alt
    matrix = np.array([[1, 0.5, 0.25], [0.5, 1, 0.75], [0.25, 0.75, 1]], dtype=np.float32)
    alt = step_similarity(matrix, "Full precision", 0).layout.meta["alt_text"]
    assert "Lowest 0.250, between steps 1 and 3" in alt


def test_importing_the_page_imports_no_plotting_and_no_networks() -> None:
    heavy = ("torch", "diffusers", "matplotlib", "plotly")
    code = f"import sys, app, ui.studio; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_figures_imports_no_plotly_and_no_gradio() -> None:
    code = "import sys, analysis.figures; print([m for m in ('plotly', 'gradio') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
