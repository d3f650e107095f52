"""Figures as files for papers: valid, the same every time, their text left as text."""

from __future__ import annotations

import io
import re
import threading
import xml.etree.ElementTree as ET
import zlib

import matplotlib
import numpy as np
import pytest
from matplotlib import image

from analysis.drawing import Axis, Bars, Drawing, Heatmap, Line, Rule
from analysis.figures import channels as channel_figures
from analysis.paper import FORMATS, STYLE, WIDTH, as_file, figure
from tests.analysis import tables
from tests.analysis.tables import DRAWINGS

HEADERS = {"pdf": b"%PDF-1.", "svg": b"<?xml", "png": b"\x89PNG\r\n\x1a\n"}
SIMPLE = Drawing(
    Axis("across (log axis)", 1, 1000, log=True),
    Axis("up", -1, 3),
    (
        Line(np.array([1, 10, 100]), np.array([0, 1, 2]), label="a"),
        Line(np.array([1, 900]), np.array([2, 0]), label="b"),
    ),
    "alt",
    title="A title",
)


def streams(pdf: bytes) -> bytes:
    """All of a PDF that is not an image, decompressed."""
    parts = [pdf]
    for match in re.finditer(rb"stream\r?\n", pdf):
        try:
            parts.append(zlib.decompressobj().decompress(pdf[match.end() :]))
        except zlib.error:
            continue
    return b"\n".join(parts)


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_becomes_a_pdf_with_embedded_true_type(drawings: dict[str, Drawing], name: str) -> None:
    pdf = as_file(drawings[name], "pdf")
    assert pdf.startswith(HEADERS["pdf"])
    assert pdf.rstrip().endswith(b"%%EOF")
    text = streams(pdf)
    assert b"/Type3" not in text
    assert b"/FontFile2" in text


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_becomes_an_svg_whose_text_is_text(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    svg = as_file(drawing, "svg")
    assert svg.startswith(HEADERS["svg"])
    texts = ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    for title in (*drawing.x.title.split("<br>"), *drawing.y.title.split("<br>"), drawing.title):
        assert title in texts or not title
    for mark in drawing.marks:
        if isinstance(mark, Rule) and mark.label:
            assert mark.label in texts


def test_a_png_has_the_pixels_of_print() -> None:
    png = as_file(SIMPLE, "png")
    assert png.startswith(HEADERS["png"])
    pixels = image.imread(io.BytesIO(png))
    assert pixels.shape[:2] == (round(WIDTH * 360 / 640 * 300), WIDTH * 300)
    assert pixels[..., :3].std() > 0.01


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["ranges-with-levels", "map-error", "distribution"])
def test_equal_drawings_make_equal_files(drawings: dict[str, Drawing], name: str, form: str) -> None:
    assert as_file(drawings[name], form) == as_file(drawings[name], form)
    assert HEADERS.keys() == FORMATS.keys()


def test_files_can_be_made_from_several_threads_at_once(drawings: dict[str, Drawing]) -> None:
    wanted = [(name, form) for name in ("thresholds", "map-coverage", "growth") for form in ("pdf", "svg")]
    expected = {key: as_file(drawings[key[0]], key[1]) for key in wanted}
    before = dict(matplotlib.rcParams)
    found: dict[tuple[str, str], bytes] = {}
    threads = [
        threading.Thread(target=lambda key=key: found.__setitem__(key, as_file(drawings[key[0]], key[1])))
        for key in wanted
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert dict(matplotlib.rcParams) == before


def test_the_style_of_others_is_neither_used_nor_changed() -> None:
    plain = as_file(SIMPLE, "svg")
    with matplotlib.rc_context({"pdf.fonttype": 3, "svg.fonttype": "path", "font.size": 30}):
        assert as_file(SIMPLE, "svg") == plain
        assert b"/Type3" not in streams(as_file(SIMPLE, "pdf"))
        assert matplotlib.rcParams["font.size"] == 30
    assert STYLE["pdf.fonttype"] == 42


def test_no_figure_is_left_open() -> None:
    from matplotlib import pyplot

    figure(SIMPLE)
    as_file(SIMPLE, "png")
    assert not pyplot.get_fignums()


def test_axes_span_what_the_drawing_says() -> None:
    [axes] = figure(SIMPLE).axes
    assert axes.get_xlim() == (1, 1000)
    assert axes.get_ylim() == (-1, 3)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert axes.get_title(loc="left") == "A title"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    upside_down = Drawing(Axis("x", reverse=True), Axis("y", 0, 5, reverse=True, ticks=((1, "one"),)), (), "alt")
    [axes] = figure(upside_down).axes
    assert axes.get_ylim() == (5, 0)
    assert axes.xaxis_inverted()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["one"]
    assert axes.get_yticks().tolist() == [1]


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1), (4, 5)], ids=str)
def test_cells_of_a_heatmap_have_a_size_however_few(shape: tuple[int, int]) -> None:
    rows, columns = shape
    heat = Heatmap(np.arange(columns) + 1, 3 * np.arange(rows), np.ones(shape), "label", 0, 1, "row", "column")
    made = figure(Drawing(Axis("x"), Axis("y"), (heat,), "alt"))
    corners = made.axes[0].collections[0].get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], np.arange(columns + 1) + 0.5)
    np.testing.assert_allclose(np.diff(corners[:, 0, 1]), 3 if rows > 1 else 1)
    np.testing.assert_allclose((corners[:-1, 0, 1] + corners[1:, 0, 1]) / 2, 3 * np.arange(rows))


def test_bars_stand_where_they_should() -> None:
    table = tables.channels()
    drawing = channel_figures.ranges(table)
    [axes] = figure(drawing).axes
    [bars] = [mark for mark in drawing.marks if isinstance(mark, Bars)]
    patches = axes.patches
    np.testing.assert_allclose([p.get_y() for p in patches], table.low)
    np.testing.assert_allclose([p.get_y() + p.get_height() for p in patches], table.high, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([p.get_x() + p.get_width() / 2 for p in patches], bars.x)
    drawn = sorted(line.get_ydata()[0] for line in axes.lines)
    np.testing.assert_allclose(drawn, table.grid_ends)
    assert [text.get_text() for text in axes.texts] == [mark.label for mark in drawing.marks if isinstance(mark, Rule)]


def test_what_is_no_mark_is_refused() -> None:
    with pytest.raises(TypeError, match="no drawing of str"):
        figure(Drawing(Axis("x"), Axis("y"), ("a mark",), "alt"))  # type: ignore[arg-type]
