"""The page and the paper show the same numbers: what plotly is given against what matplotlib drew."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_hex

from analysis.drawing import Band, Bars, Drawing, Heatmap, Line, Points, Rule
from analysis.paper import figure
from analysis.screen import payload
from tests.analysis.decoding import decoded
from tests.analysis.tables import DRAWINGS


@pytest.mark.parametrize("name", DRAWINGS)
def test_both_show_the_same_numbers(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    traces = payload(drawing)["data"]
    axes = figure(drawing).axes[0]
    lines, scatters, meshes, patches = (
        iter(axes.lines),
        iter(axes.collections),
        iter(axes.collections),
        iter(axes.patches),
    )
    marks = [mark for mark in drawing.marks if not isinstance(mark, (Rule, Band))]
    on_screen = iter(traces)
    for mark in drawing.marks:
        if isinstance(mark, Rule):
            line = next(lines)
            values = line.get_xdata() if mark.axis == "x" else line.get_ydata()
            assert list(values) == [mark.value, mark.value]
            continue
        if isinstance(mark, Band):
            box = next(patches).get_extents().transformed(axes.transData.inverted())
            assert sorted([box.x0, box.x1]) == pytest.approx(sorted([mark.low, mark.high]), abs=1e-6)
            continue
        trace = next(on_screen)
        if isinstance(mark, Line):
            line = next(lines)
            np.testing.assert_array_equal(np.float32(line.get_xdata()), decoded(trace["x"]))
            np.testing.assert_array_equal(np.float32(line.get_ydata()), decoded(trace["y"]))
            assert to_hex(line.get_color()) == trace["line"]["color"]
        elif isinstance(mark, Points):
            places = np.float32(next(scatters).get_offsets())
            np.testing.assert_array_equal(places[:, 0], decoded(trace["x"]))
            np.testing.assert_array_equal(places[:, 1], decoded(trace["y"]))
        elif isinstance(mark, Heatmap):
            mesh = next(meshes)
            z = np.float32(np.ma.filled(mesh.get_array().astype(float), np.nan)).reshape(mark.z.shape)
            np.testing.assert_array_equal(z, decoded(trace["customdata"] if mark.log else trace["z"]))
            assert isinstance(mesh.norm, LogNorm) is mark.log
            ends = np.array([mesh.norm.vmin, mesh.norm.vmax])
            np.testing.assert_allclose(np.log10(ends) if mark.log else ends, [trace["zmin"], trace["zmax"]])
        elif isinstance(mark, Bars):
            own = [next(patches) for _ in mark.x]
            bottoms, heights = [p.get_y() for p in own], [p.get_height() for p in own]
            np.testing.assert_array_equal(np.float32(bottoms), np.float32(trace["base"]))
            np.testing.assert_allclose(np.float32(heights), decoded(trace["y"]), rtol=1e-6)
            centres = [p.get_x() + p.get_width() / 2 for p in own]
            np.testing.assert_allclose(centres, decoded(trace["x"]), rtol=1e-5, atol=1e-6)
            assert {to_hex(p.get_facecolor()) for p in own} == {trace["marker"]["color"]}
    assert marks
    assert next(lines, None) is None
    assert next(on_screen, None) is None


@pytest.mark.parametrize("name", DRAWINGS)
def test_both_have_the_same_axes(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    layout = payload(drawing)["layout"]
    axes = figure(drawing).axes[0]
    for letter, limits, scale, label in (
        ("x", axes.get_xlim(), axes.get_xscale(), axes.get_xlabel()),
        ("y", axes.get_ylim(), axes.get_yscale(), axes.get_ylabel()),
    ):
        on_screen = layout[f"{letter}axis"]
        logarithmic = scale == "log"
        assert logarithmic == (on_screen["type"] == "log")
        if "range" in on_screen:
            np.testing.assert_allclose(np.log10(limits) if logarithmic else limits, on_screen["range"])
        assert label == on_screen["title"]["text"].replace("<br>", "\n")
        if "ticktext" in on_screen:
            ticks = getattr(axes, f"get_{letter}ticklabels")()
            assert [tick.get_text() for tick in ticks] == on_screen["ticktext"]
