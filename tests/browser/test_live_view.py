"""Live views in a real browser: the newest value wins, figures change in place, both themes, nothing leaks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from tests.browser import toy_view
from tests.browser.live_pages import COUNT_CONTEXTS, answered, open_tab, plot, set_number, traces, unpacked, words
from tests.browser.toy_view import BARE, BARS, BROKEN, REFUSED, SLOW
from ui.live_view import STYLE

pytestmark = pytest.mark.browser

# One number per sRGB colour "rgb(r, g, b)", 0 black to 1 white, as WCAG defines it.
LUMINANCE = """colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""

# The colour behind a node: that of the nearest ancestor that has one.
BACKGROUND = """node => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
  return 'rgb(255, 255, 255)';
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    demo = toy_view.build()
    try:
        yield demo.launch(prevent_thread_lock=True, quiet=True, run_history=False, css_paths=[STYLE])[1]
    finally:
        demo.close()


@pytest.fixture
def open_page(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end of the test, nothing unexpected may have been written to the error console."""
    errors: list[str] = []
    contexts = []

    def opened(theme: str = "light", expected: str = "none", **options: Any) -> Any:
        def note(text: str) -> None:
            if expected not in text:
                errors.append(text)

        context = chromium.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(COUNT_CONTEXTS)
        page.on("console", lambda m: note(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        page.goto(f"{address}?__theme={theme}")
        page.wait_for_selector("#first [data-slot=matrix][data-state=ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors, errors


def show(page: Any, number: int) -> None:
    with answered(page, "first"):
        set_number(page, "number", number)


def x_range(page: Any) -> list[float]:
    found: list[float] = plot(page, "first", "bars", "plot._fullLayout.xaxis.range.slice()")
    return found


def test_a_moved_slider_changes_words_and_figures_in_place(open_page: Any) -> None:
    page = open_page()
    page.evaluate("window.before = [...document.querySelectorAll('.qvd-figure-plot .main-svg')]")
    show(page, 9)
    assert words(page, "first") == "Number 9 <of> toy."
    np.testing.assert_array_equal(unpacked(traces(page, "first", "bars")[0]["y"]), toy_view.heights(9))
    drawn = plot(page, "first", "bars", "[...plot.querySelectorAll('.bars .point path')].map(p => p.getBBox().height)")
    unit = plot(page, "first", "bars", "plot._fullLayout.yaxis._length / plot._fullLayout.yaxis.range[1]")
    np.testing.assert_allclose(np.array(drawn) / unit, toy_view.heights(9), atol=1.5 / unit)  # snapped to pixels
    assert page.evaluate("window.before.every(node => node.isConnected)")
    assert page.get_by_role("img", name="Bars, version 9").count() == 1  # figures speak


def test_plotly_is_fetched_once_for_all_views(open_page: Any) -> None:
    page = open_page()
    with answered(page, "later"):
        open_tab(page, "Later")
    fetched = "performance.getEntriesByType('resource').filter(r => r.name.endsWith('plotly.min.js')).length"
    assert page.evaluate(fetched) == 1


def test_after_a_fast_drag_the_last_value_is_shown(open_page: Any) -> None:
    page = open_page()
    asked = []
    page.on("request", lambda request: asked.append(1) if "component_server" in request.url else None)
    slider = page.locator("#number input[type=range]").bounding_box()
    middle = slider["y"] + slider["height"] / 2
    with answered(page, "first"):
        page.mouse.move(slider["x"] + 8, middle)
        page.mouse.down()
        page.mouse.move(slider["x"] + 0.7 * slider["width"], middle, steps=40)
        page.mouse.up()
    last = int(page.input_value("#number input[type=number]"))
    assert last > 20
    page.get_by_role("img", name=f"Bars, version {last}").wait_for()
    assert words(page, "first") == f"Number {last} <of> toy."
    # While a slow answer is under way only the newest question waits.
    asked.clear()
    with answered(page, "first"):
        page.evaluate(f"[{SLOW}, 1, 2, 3, 4, 5, 6, 7].forEach(value => window.qvdViews.first.choose('number', value))")
    assert words(page, "first") == "Number 7 <of> toy."
    assert len(asked) == 2


def test_zoom_survives_an_update_and_a_double_click_ends_it(open_page: Any) -> None:
    page = open_page()
    area = page.locator("#first [data-slot=bars] .nsewdrag").bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + 0.25 * area["width"], middle)
    page.mouse.down()
    page.mouse.move(area["x"] + 0.6 * area["width"], middle, steps=6)
    page.mouse.up()
    zoomed = x_range(page)
    assert zoomed[1] < BARS - 4
    show(page, 2)
    assert x_range(page) == pytest.approx(zoomed)
    page.locator("#first [data-slot=bars] .nsewdrag").dblclick()
    node = "document.querySelector('#first [data-slot=bars] .qvd-figure-plot')"
    page.wait_for_function(f"{node}._fullLayout.xaxis.range[1] === {BARS}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read(open_page: Any, theme: str) -> None:
    page = open_page(theme)
    back = page.evaluate(f"({LUMINANCE})(({BACKGROUND})(document.querySelector('#first .qvd-figure')))")
    assert (back < 0.2) == (theme == "dark")
    texts = page.evaluate(
        f"""[...document.querySelectorAll('#first .qvd-figure .main-svg text, #first .qvd-finding')]
        .filter(t => t.textContent)
        .map(t => [t.textContent, ({LUMINANCE})(getComputedStyle(t)[t.tagName === 'P' ? 'color' : 'fill'])])"""
    )
    assert len(texts) > 15
    for text, front in texts:
        contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
        assert contrast >= 4.5, (text, contrast)


def test_figures_follow_the_width_of_the_page(open_page: Any) -> None:
    page = open_page()
    for width in (900, 390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            """[...document.querySelectorAll('#first .qvd-figure[data-state=ready]')].every(root => {
              const svg = root.querySelector('.main-svg');
              return Math.abs(svg.getBoundingClientRect().width - root.clientWidth) <= 1;
            })"""
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_hidden_tab_catches_up_when_it_is_shown(open_page: Any) -> None:
    page = open_page()
    show(page, 3)
    with answered(page, "later"):
        open_tab(page, "Later")
    assert words(page, "later") == "Number 3 <of> toy."
    assert abs(plot(page, "later", "bars", "plot._fullLayout.width - plot.clientWidth")) <= 1
    asked = []
    page.on("request", lambda request: asked.append(1) if "component_server" in request.url else None)
    with answered(page, "later"):
        set_number(page, "number", 8)
    assert len(asked) == 1  # hidden views ask nothing
    with answered(page, "first"):
        open_tab(page, "First")
    assert words(page, "first") == "Number 8 <of> toy."


def test_a_view_far_below_waits_until_it_is_scrolled_to(open_page: Any) -> None:
    page = open_page()
    with answered(page, "far"):
        open_tab(page, "Far")
    set_number(page, "number", 6)
    page.wait_for_timeout(500)
    figure = page.locator("#far [data-slot=bars]")
    assert words(page, "far") == "Number 0 <of> toy."  # out of sight
    assert figure.get_attribute("data-drawn") is None
    with answered(page, "far"):
        figure.scroll_into_view_if_needed()
    page.wait_for_selector("#far [data-slot=bars][data-drawn='1'][data-state=ready]")
    assert words(page, "far") == "Number 6 <of> toy."
    assert page.locator("#far [aria-label='Bars, version 6']").count() == 1


def test_an_answer_without_a_figure_hides_it_and_brings_it_back(open_page: Any) -> None:
    page = open_page()
    show(page, BARE)
    assert not page.is_visible("#first [data-slot=matrix]")
    assert page.locator("#first [data-slot=matrix] .main-svg").count() == 0
    show(page, 5)
    page.wait_for_selector("#first [data-slot=matrix][data-state=ready] .main-svg")


def test_a_refusal_is_shown_as_text_and_ends_with_the_next_value(open_page: Any) -> None:
    page = open_page()
    set_number(page, "number", REFUSED)
    page.wait_for_selector("#first .qvd-view-message >> text='This number is <b>not</b> offered.'")
    assert not page.is_visible("#first .qvd-view-slots")
    show(page, 4)
    assert page.is_visible("#first .qvd-view-slots")
    assert words(page, "first") == "Number 4 <of> toy."


def test_a_bug_behind_a_view_is_told_without_its_inside(open_page: Any) -> None:
    page = open_page(expected="500")  # browsers report every failed request on the console
    set_number(page, "number", BROKEN)
    message = page.locator("#first .qvd-view-message")
    page.wait_for_selector("#first .qvd-view:not([data-state=ready])")
    assert "try again" in message.inner_text()
    assert "secret" not in page.content()
    show(page, 4)
    assert words(page, "first") == "Number 4 <of> toy."


def test_a_click_on_a_cell_tells_its_row_and_step(open_page: Any) -> None:
    page = open_page()
    area = page.locator("#first [data-slot=matrix] .nsewdrag").bounding_box()
    page.mouse.click(area["x"] + 4.5 / 12 * area["width"], area["y"] + 10.5 / 12 * area["height"])
    page.wait_for_function("document.querySelector('#picked textarea, #picked input').value === 'matrix 5 row 1'")


def test_files_hold_what_is_shown(open_page: Any) -> None:
    page = open_page()
    show(page, 11)
    files = {}
    for form in ("pdf", "svg", "png", "csv"):
        page.hover("#first [data-slot=bars]")
        with page.expect_download() as download:
            page.click(f"#first [data-slot=bars] button[data-format={form}]")
        assert download.value.suggested_filename == f"first-bars.{form}"
        files[form] = download.value.path().read_bytes()
    assert files["pdf"].startswith(b"%PDF-")
    assert b"<svg" in files["svg"]
    assert files["png"].startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode())))
    assert [float(row["height"]) for row in rows] == toy_view.heights(11).tolist()


def test_no_button_sends_the_figure_anywhere(open_page: Any) -> None:
    page = open_page()
    titles = plot(page, "first", "bars", "[...plot.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles == ["Zoom", "Pan", "Reset axes"]


def test_a_finger_scrolls_the_page_instead_of_zooming(open_page: Any) -> None:
    page = open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    assert plot(page, "first", "bars", "plot._fullLayout.dragmode") is False


def test_two_hundred_updates_leave_nothing_behind(open_page: Any) -> None:
    page = open_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def counts() -> dict[str, float]:
        for _ in range(3):  # what one collection frees may hold more
            session.send("HeapProfiler.collectGarbage")
        return {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}

    update = """async many => {
      const root = document.querySelector('#first .qvd-view');
      for (let i = 0; i < many; i++) {
        const before = root.dataset.shown;
        window.qvdViews.first.choose('number', 1 + i % 49);  // each time another: the same would ask nothing
        const latest = performance.now() + 20000;
        while (root.dataset.shown === before) {
          if (performance.now() > latest) throw new Error(`update ${i} never came`);
          await new Promise(resolve => setTimeout(resolve));
        }
      }
    }"""
    page.evaluate(update, 20)
    before = counts()
    page.evaluate(update, 200)
    after = counts()
    assert int(page.locator("#first .qvd-view").get_attribute("data-shown")) >= 221
    assert after["Nodes"] - before["Nodes"] <= 60  # ticks come and go with the numbers
    assert after["JSEventListeners"] - before["JSEventListeners"] <= 20
    assert after["JSHeapUsedSize"] - before["JSHeapUsedSize"] <= 2e6
    assert page.evaluate("window.contexts") <= 1  # plotly may probe once whether WebGL is there
    shown = page.locator("#first .qvd-figure[data-state=ready]").count()
    assert page.locator("#first .main-svg").count() == 3 * shown
