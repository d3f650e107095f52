"""The figure panel in a real browser: draws, updates in place, keeps zoom, both themes, leaks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")
from plotly import graph_objects as go

from analysis.figures import step_similarity
from ui.figure_panel import STYLE, figure_panel, figure_payload

pytestmark = pytest.mark.browser

BARS, NUMBERS = 24, 34
COUNT_CONTEXTS = """
window.contexts = 0;
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  if (String(kind).startsWith('webgl')) window.contexts++;
  return get.call(this, kind, ...rest);
};
"""
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


def bars(number: int) -> dict[str, Any]:
    heights = np.arange(1, BARS + 1, dtype=np.float32) + number
    figure = go.Figure(go.Bar(x=np.arange(BARS, dtype=np.float32), y=heights, base=[-1.0] * BARS))
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=300,
        uirevision="kept",
        meta={"alt_text": f"Bars, version {number}"},
        xaxis={"range": [-1, BARS], "title": "bar"},
        yaxis={"range": [-2, BARS + NUMBERS], "title": "height"},
    )
    return figure_payload(figure)


def matrix(number: int) -> dict[str, Any]:
    values = np.random.default_rng(number).uniform(size=(12, 12)).astype(np.float32)
    return figure_payload(step_similarity(values, f"Matrix {number}", 0.0))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two panels in the first tab, which follow a number; a third in a tab that opens later."""
    with gr.Blocks() as demo:
        with gr.Tab("First"):
            number = gr.Slider(0, NUMBERS, 0, step=1, elem_id="number")
            with gr.Row():
                with gr.Column():
                    first = figure_panel(elem_id="first", placeholder="Nothing here yet.")
                with gr.Column():
                    second = figure_panel(elem_id="second")
            for name, shown in (("hide", False), ("unhide", True)):
                gr.Button(name).click(lambda shown=shown: gr.update(visible=shown), None, first)
            gr.Button("empty").click(lambda: None, None, first)
        with gr.Tab("Later"):
            later = figure_panel(elem_id="later")
        number.change(
            lambda n: [bars(int(n)), matrix(int(n)), bars(int(n))],
            number,
            [first, second, later],
            show_progress="hidden",
            trigger_mode="always_last",
        )
    try:
        yield demo.launch(prevent_thread_lock=True, quiet=True, run_history=False, css_paths=[STYLE])[1]
    finally:
        demo.close()


@pytest.fixture
def open_page(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end of the test, nothing may have been written to the error console."""
    errors: list[str] = []
    contexts = []

    def opened(theme: str = "light", **options: Any) -> Any:
        context = chromium.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(COUNT_CONTEXTS)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}?__theme={theme}")
        page.get_by_text("Nothing here yet.").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors, errors


def send(page: Any, number: int) -> None:
    """Have the server send version `number` of all figures, and wait for both visible ones to show it."""
    page.fill("#number input[type=number]", str(number))
    page.keyboard.press("Tab")
    page.locator(f"#first [aria-label='Bars, version {number}']").wait_for()
    page.locator("#first [data-state=ready]").wait_for()
    page.locator("#second .gtitle", has_text=f"Matrix {number}").wait_for()


def plot(page: Any, panel: str, expression: str) -> Any:
    return page.evaluate(
        f"(() => {{ const plot = document.querySelector('#{panel} .qvd-figure-plot'); return {expression}; }})()"
    )


def x_range(page: Any) -> list[float]:
    return plot(page, "first", "plot._fullLayout.xaxis.range.slice()")


def drag_a_zoom(page: Any) -> list[float]:
    area = page.locator("#first .nsewdrag").bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + 0.25 * area["width"], middle)
    page.mouse.down()
    page.mouse.move(area["x"] + 0.6 * area["width"], middle, steps=6)
    page.mouse.up()
    page.wait_for_function(f"document.querySelector('#first .qvd-figure-plot')._fullLayout.xaxis.range[1] < {BARS - 4}")
    return x_range(page)


def test_the_bars_are_as_high_as_the_values(open_page: Any) -> None:
    page = open_page()
    send(page, 3)
    drawn = plot(page, "first", "[...plot.querySelectorAll('.bars .point path')].map(p => p.getBBox().height)")
    assert len(drawn) == BARS
    unit = plot(page, "first", "plot._fullLayout.yaxis._length / (plot._fullLayout.yaxis.range[1] + 2)")
    # Bars start at their base and are as high as their values; plotly snaps to half pixels.
    np.testing.assert_allclose(np.array(drawn) / unit, np.arange(1, BARS + 1) + 3, atol=1.5 / unit)


def test_plotly_is_fetched_once_and_only_when_a_figure_is_there(open_page: Any) -> None:
    page = open_page()
    fetched = "performance.getEntriesByType('resource').filter(r => r.name.endsWith('plotly.min.js')).length"
    page.wait_for_timeout(500)
    assert page.evaluate(fetched) == 0
    send(page, 1)
    send(page, 2)
    page.get_by_role("tab", name="Later").click()
    page.locator("#later [data-state=ready]").wait_for()
    assert page.evaluate(fetched) == 1
    assert page.locator("script[src*='plotly.min.js']").count() == 1


def test_an_update_changes_the_figure_in_place(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    page.evaluate("window.before = [...document.querySelectorAll('.qvd-figure-plot .main-svg')]")
    before = plot(page, "first", "plot.querySelector('.bars .point path').getAttribute('d')")
    send(page, 9)
    assert plot(page, "first", "plot.querySelector('.bars .point path').getAttribute('d')") != before
    assert page.evaluate("window.before.every(node => node.isConnected)")


def test_zoom_survives_an_update_and_a_double_click_ends_it(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    assert x_range(page) == [-1, BARS]
    zoomed = drag_a_zoom(page)
    send(page, 2)
    assert x_range(page) == pytest.approx(zoomed)
    page.locator("#first .nsewdrag").dblclick()
    page.wait_for_function(f"document.querySelector('#first .qvd-figure-plot')._fullLayout.xaxis.range[1] === {BARS}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read(open_page: Any, theme: str) -> None:
    page = open_page(theme)
    send(page, 1)
    back = page.evaluate(f"({LUMINANCE})(({BACKGROUND})(document.querySelector('#first .qvd-figure')))")
    assert (back < 0.2) == (theme == "dark")
    texts = page.evaluate(
        f"""[...document.querySelectorAll('.qvd-figure .main-svg text')].filter(t => t.textContent)
        .map(t => [t.textContent, ({LUMINANCE})(getComputedStyle(t).fill)])"""
    )
    assert len(texts) > 15
    for text, front in texts:
        contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
        assert contrast >= 4.5, (text, contrast)


def test_a_theme_switched_while_a_figure_stands_needs_no_redraw(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    colour = "getComputedStyle(plot.querySelector('.xtick text')).fill"
    light = plot(page, "first", colour)
    page.evaluate("document.body.classList.add('dark')")
    assert plot(page, "first", colour) != light
    assert page.locator("#first [data-drawn]").get_attribute("data-drawn") == "1"


def test_the_figure_follows_the_width_of_the_page(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    for width in (900, 390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            """[...document.querySelectorAll('.qvd-figure')].every(root => {
              const svg = root.querySelector('.main-svg');
              return !root.clientWidth || Math.abs(svg.getBoundingClientRect().width - root.clientWidth) <= 1;
            })"""
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_figure_sent_to_a_tab_not_yet_open_has_its_width_when_it_opens(open_page: Any) -> None:
    page = open_page()
    send(page, 4)
    page.get_by_role("tab", name="Later").click()
    page.locator("#later [aria-label='Bars, version 4']").wait_for()
    page.locator("#later [data-state=ready]").wait_for()
    assert abs(plot(page, "later", "plot._fullLayout.width - plot.clientWidth")) <= 1
    assert plot(page, "later", "plot.clientWidth") > 600


def test_a_panel_hidden_and_shown_again_draws_again_and_leaves_nothing_behind(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    page.evaluate("window.old = document.querySelector('#first .qvd-figure-plot')")
    page.get_by_role("button", name="hide", exact=True).click()
    page.wait_for_function("!window.old.isConnected && !window.old._fullLayout")
    page.get_by_role("button", name="unhide").click()
    page.locator("#first [data-state=ready]").wait_for()
    send(page, 2)


def test_without_a_value_the_panel_says_so(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    page.get_by_role("button", name="empty").click()
    page.get_by_text("Nothing here yet.").wait_for()
    assert page.locator("#first .main-svg").count() == 0
    assert page.locator("#first [role=img]").get_attribute("aria-label") is None
    send(page, 2)


def test_figures_speak(open_page: Any) -> None:
    page = open_page()
    send(page, 5)
    assert page.get_by_role("img", name="Bars, version 5").count() == 1
    assert page.get_by_role("img", name="Matrix 5: cosine similarity").count() == 1


def test_thirty_updates_grow_nothing(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    send(page, 2)
    count = "[document.querySelectorAll('canvas').length, document.querySelectorAll('*').length]"
    canvases, nodes = page.evaluate(count)
    for number in range(3, 33):
        send(page, number)
    after_canvases, after_nodes = page.evaluate(count)
    assert after_canvases == canvases
    assert abs(after_nodes - nodes) <= 30  # ticks come and go with the numbers
    assert page.evaluate("window.contexts") <= 1  # plotly may probe once whether WebGL is there
    assert page.locator(".main-svg").count() == page.locator(".qvd-figure[data-state=ready]").count() * 3


def test_no_button_sends_the_figure_anywhere(open_page: Any) -> None:
    page = open_page()
    send(page, 1)
    titles = plot(page, "first", "[...plot.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]


def test_a_finger_scrolls_the_page_instead_of_zooming(open_page: Any) -> None:
    page = open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    send(page, 1)
    assert plot(page, "first", "plot._fullLayout.dragmode") is False
