"""What the page gets: real plotly figures, small, with the drawing's numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from plotly import graph_objects as go

from analysis.drawing import Axis, Band, Bars, Drawing, Heatmap, Line, Points, Rule
from analysis.figures import channels as channel_figures
from analysis.figures import site_map as map_figures
from analysis.figures import temporal as temporal_figures
from analysis.htdq import htdq_table
from analysis.screen import figure, payload
from qvd_core.formats import HTDQ
from qvd_core.models.loader import VideoModel
from tests.analysis import tables
from tests.analysis.decoding import decoded
from tests.analysis.tables import DRAWINGS


def size(drawing: Drawing) -> int:
    return len(json.dumps(payload(drawing), allow_nan=False))


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_payload_is_json_and_a_real_figure(drawings: dict[str, Drawing], name: str) -> None:
    made = json.loads(json.dumps(payload(drawings[name]), allow_nan=False))
    checked = go.Figure(made)  # refuses what plotly does not know
    assert checked.layout.meta["alt_text"] == drawings[name].alt_text
    assert figure(drawings[name]).to_dict().keys() == checked.to_dict().keys()


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_numbers_are_those_of_the_drawing(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    traces = iter(payload(drawing)["data"])
    for mark in drawing.marks:
        if isinstance(mark, (Rule, Band)):
            continue
        trace = next(traces)
        np.testing.assert_array_equal(decoded(trace["x"]), np.float32(mark.x))
        if isinstance(mark, Bars):
            np.testing.assert_array_equal(np.float32(trace["base"]), np.float32(mark.low))
            np.testing.assert_array_equal(decoded(trace["y"]), np.float32(mark.high - mark.low))
            assert isinstance(trace["base"], list)  # plotly.js reads no packed array here
        elif isinstance(mark, Heatmap):
            shown = decoded(trace["customdata"] if mark.log else trace["z"])
            np.testing.assert_array_equal(shown, np.float32(mark.z))
            if mark.log:
                np.testing.assert_allclose(10.0 ** decoded(trace["z"]), mark.z, rtol=1e-4)
                assert (trace["zmin"], trace["zmax"]) == pytest.approx(np.log10([mark.low, mark.high]))
            else:
                assert (trace["zmin"], trace["zmax"]) == (mark.low, mark.high)
        else:
            np.testing.assert_array_equal(decoded(trace["y"]), np.float32(mark.y))
        assert list(trace.get("hovertext", ())) == list(getattr(mark, "hover", ()))
    assert next(traces, None) is None


@pytest.mark.parametrize("name", DRAWINGS)
def test_rules_and_bands_stand_at_their_values(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    layout = payload(drawing)["layout"]
    marks = [mark for mark in drawing.marks if isinstance(mark, (Rule, Band))]
    for shape, mark in zip(layout["shapes"], marks, strict=True):
        if isinstance(mark, Band):
            assert (shape["x0"], shape["x1"], shape["yref"]) == (mark.low, mark.high, "paper")
        else:
            assert shape[f"{mark.axis}0"] == shape[f"{mark.axis}1"] == mark.value
            assert shape["layer"] == "below"
    assert [note["text"] for note in layout["annotations"]] == [mark.label for mark in marks if mark.label]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_fits_light_and_dark(drawings: dict[str, Drawing], name: str) -> None:
    layout = payload(drawings[name])["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert layout["font"]["family"] == "inherit"
    assert "color" not in layout["font"]
    assert layout["uirevision"] == drawings[name].keep_zoom
    assert layout["height"] == drawings[name].height


def test_axes_span_what_the_drawing_says() -> None:
    plain, upside_down = Axis("a", 1, 100), Axis("b", 1, 100, reverse=True)
    layout = payload(Drawing(plain, upside_down, (), "alt"))["layout"]
    assert layout["xaxis"]["range"] == [1, 100]
    assert layout["yaxis"]["range"] == [100, 1]
    logarithmic = Axis("c", 1, 100, log=True, reverse=True, ticks=((10, "ten"),))
    layout = payload(Drawing(logarithmic, Axis("d", reverse=True), (), "alt"))["layout"]
    assert layout["xaxis"]["range"] == [2, 0]
    assert layout["xaxis"]["type"] == "log"
    assert (layout["xaxis"]["tickvals"], layout["xaxis"]["ticktext"]) == ([10], ["ten"])
    assert "range" not in layout["yaxis"]
    assert layout["yaxis"]["autorange"] == "reversed"


def test_words_on_logarithmic_axes_stand_at_the_logarithm_and_rules_at_the_value() -> None:
    marks = (Rule("x", 1000.0, label="a"), Rule("y", 0.01, label="b"), Rule("y", 0.1, label="c", side="below"))
    layout = payload(Drawing(Axis("x", log=True), Axis("y", log=True), marks, "alt"))["layout"]
    assert [note["x"] for note in layout["annotations"]] == [3, 1, 1]
    assert [note["y"] for note in layout["annotations"]] == pytest.approx([1, -2, -1])
    assert [note["yanchor"] for note in layout["annotations"]] == ["bottom", "bottom", "top"]
    assert [shape["x0"] for shape in layout["shapes"]] == [1000, 0, 0]
    linear = payload(Drawing(Axis("x"), Axis("y"), marks, "alt"))["layout"]
    assert linear["annotations"][0]["x"] == 1000


def test_named_rows_become_categories() -> None:
    table = tables.mapped("error")
    made = payload(map_figures.site_map(table))
    assert made["data"][0]["y"] == list(table.sites)
    axis = made["layout"]["yaxis"]
    assert axis["type"] == "category"
    assert axis["tickvals"] == [table.sites[0], table.sites[4], table.sites[8]]
    assert axis["ticktext"] == ["down_blocks.0", "down_blocks.1", "down_blocks.2"]
    assert axis["range"] == [11.5, -0.5]
    assert "%{y}<br>step" in made["data"][0]["hovertemplate"]
    unnamed = payload(channel_figures.widths(tables.widths()))
    assert unnamed["layout"]["yaxis"]["type"] == "linear"
    assert "place %{y:.0f}<br>step" in unnamed["data"][0]["hovertemplate"]


def test_a_logarithmic_colour_bar_is_labelled_in_powers_of_ten() -> None:
    heat = Heatmap(np.arange(2), np.arange(2), np.array([[0.01, 1], [10, np.nan]]), "e", 0.005, 50, "r", "c", log=True)
    [trace] = payload(Drawing(Axis("x"), Axis("y"), (heat,), "alt"))["data"]
    assert trace["colorbar"]["tickvals"] == [-2, -1, 0, 1]
    assert trace["colorbar"]["ticktext"] == ["0.01", "0.1", "1", "10"]
    assert np.isnan(decoded(trace["z"])[1, 1])


def test_points_report_their_names_to_a_click() -> None:
    points = Points(np.arange(2), np.arange(2), names=("a", "b"))
    [trace] = payload(Drawing(Axis("x"), Axis("y"), (points,), "alt"))["data"]
    assert trace["meta"] == {"names": ["a", "b"]}


def test_a_legend_is_there_where_several_things_are_named() -> None:
    one, two = (Line(np.arange(2), np.arange(2), label=label) for label in "ab")
    for marks, expected in (((one,), False), ((one, two), True), ((one, dataclasses.replace(two, label="")), False)):
        assert payload(Drawing(Axis("x"), Axis("y"), marks, "alt"))["layout"]["showlegend"] is expected


def test_what_is_no_mark_is_refused() -> None:
    unknown: Any = "a mark"
    with pytest.raises(TypeError, match="no trace for str"):
        payload(Drawing(Axis("x"), Axis("y"), (unknown,), "alt"))


def test_payloads_stay_small_whatever_the_model() -> None:
    names = tuple(f"down_blocks.{i % 4}.motion_modules.0.transformer_blocks.0.attn1.to_q_{i:03}" for i in range(534))
    for metric, most in (("coverage", 150_000), ("skewness", 150_000), ("error", 190_000), ("disparity", 190_000)):
        table = dataclasses.replace(tables.mapped(metric, 534, 25), sites=names)
        assert size(map_figures.site_map(table)) < most, metric
    for count in (512, 513, 5120, 20_000):
        for bits in (5, 16):
            assert size(channel_figures.ranges(tables.channels(count, bits))) < 90_000
        assert size(channel_figures.widths(tables.widths(count))) < 60_000
    assert size(channel_figures.ranges(tables.channels(5120))) < 60_000


@pytest.mark.parametrize("method", [HTDQ(), HTDQ(sign_inside=False), HTDQ(port=True)], ids=["in", "out", "port"])
def test_sixteen_bits_fit_too(model: VideoModel, method: HTDQ) -> None:
    table = htdq_table(model, 50, 16, method)
    for draw in (temporal_figures.staircases, temporal_figures.code_use, temporal_figures.search):
        assert size(draw(table)) < 80_000
    assert size(temporal_figures.distribution(tables.temporal(16))) < 20_000
