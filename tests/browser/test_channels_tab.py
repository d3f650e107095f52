"""The Channels tab shows the numbers of the tables, whatever control moves, and acts on the layer it shows."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from analysis.channels import ChannelTable, channel_table, in_words
from analysis.scri import ChannelWidths, ThresholdTable, channel_widths, staged_transform, threshold_table
from analysis.site_map import METRICS, site_map
from analysis.site_map import in_words as map_in_words
from qvd_core.calibration.calibrate import embedded_statistics
from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import get_recipe
from tests.browser.live_pages import (
    answered,
    choose,
    open_tab,
    plot,
    recipe_name,
    set_number,
    tick,
    traces,
    unpacked,
    wait_for_recipe,
    words,
)
from ui.channels_tab import METRICS as METRIC_WORDS
from ui.channels_tab import STAGES

pytestmark = pytest.mark.browser
VIEW, MAP = "channels-view", "map-view"


@pytest.fixture(scope="module")
def shipped(mini: VideoModel) -> Statistics:
    found = embedded_statistics(mini)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def page(tall_page: Any) -> Any:
    with answered(tall_page, VIEW):
        open_tab(tall_page, "Channels")
    return tall_page


@dataclass(frozen=True)
class Asked:
    """What the controls say; steps and frames count from 1, and 0 is all of them."""

    layer: str
    step: int = 0
    frame: int = 0
    bits: int = 8
    sort: str = "range"
    stage: str = STAGES[0]
    share: float = 1.0


@dataclass(frozen=True)
class Expected:
    table: ChannelTable
    widths: ChannelWidths
    search: ThresholdTable | None


def expected(model: VideoModel, statistics: Statistics, asked: Asked) -> Expected:
    role = next(site.role for site in model.sites if site.name == asked.layer)
    form, search = ActivationFormat(asked.bits), None
    if asked.stage == STAGES[2]:
        weights = get_recipe("minmax-w8a8").formats(asked.layer, role)[0]
        search = threshold_table(model, statistics, asked.layer, weights, form)
        search = search.showing(asked.share * float(search.thresholds[0]))
    transform = staged_transform(model, statistics, asked.layer, asked.stage, search.chosen if search else None)
    step, frame = asked.step - 1 if asked.step else None, asked.frame - 1 if asked.frame else None
    table = channel_table(statistics, asked.layer, form, step, asked.sort, frame=frame, transform=transform)
    by = "frame" if asked.frame else "step"
    return Expected(table, channel_widths(statistics, asked.layer, by, False, transform), search)


def check(page: Any, wanted: Expected) -> None:
    """What the page shows is what the tables hold."""
    table = wanted.table
    assert words(page, VIEW) == in_words(table)
    assert words(page, VIEW, "cards").splitlines()[1] == f"{table.coverage.mean():.0%}"
    (bars,) = [trace for trace in traces(page, VIEW, "ranges") if trace["type"] == "bar"]
    np.testing.assert_allclose(unpacked(bars["base"]), table.low, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(unpacked(bars["y"]), table.high - table.low, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(unpacked(traces(page, VIEW, "widths")[0]["z"]), wanted.widths.shares, rtol=1e-5)
    assert page.is_visible(f"#{VIEW} [data-slot=thresholds]") == (wanted.search is not None)
    if wanted.search is not None:
        errors, coverage, _ = traces(page, VIEW, "thresholds")
        np.testing.assert_allclose(unpacked(errors["y"]), wanted.search.relative_errors, rtol=1e-4)
        np.testing.assert_allclose(unpacked(coverage["y"]), wanted.search.coverage, rtol=1e-5)


def test_every_control_finds_the_numbers_of_the_tables(page: Any, mini: VideoModel, shipped: Statistics) -> None:
    asked = Asked(page.input_value("#channels-layer select"))
    check(page, expected(mini, shipped, asked))
    moves = [
        (set_number, "channels-step", 7, {"step": 7}),
        (set_number, "channels-frame", 3, {"frame": 3}),
        (set_number, "channels-step", 0, {"step": 0}),
        (set_number, "channels-bits", 4, {"bits": 4}),
        (choose, "channels-sort", "rounding error", {"sort": "error"}),
        (tick, "channels-stage", "shifted", {"stage": "shifted"}),
        (tick, "channels-stage", "shifted and scaled", {"stage": "shifted and scaled"}),
        (set_number, "channels-threshold", 0.4, {"share": 0.4}),
    ]
    for move, control, value, change in moves:
        asked = dataclasses.replace(asked, **change)
        with answered(page, VIEW):
            move(page, control, value)
        check(page, expected(mini, shipped, asked))
    other = page.locator("#channels-layer option").nth(30).get_attribute("value")
    assert other != asked.layer
    with answered(page, VIEW):
        page.select_option("#channels-layer select", other)
    check(page, expected(mini, shipped, dataclasses.replace(asked, layer=other)))


def test_arrow_keys_walk_through_the_layers(page: Any) -> None:
    menu = page.locator("#channels-layer select")
    for key in ("End", "PageUp", "PageUp"):
        before = menu.input_value()
        with answered(page, VIEW):
            menu.press(key)
        assert menu.input_value() != before
        assert menu.input_value() in page.get_attribute(f"#{VIEW} [data-slot=ranges] [role=img]", "aria-label")
    page.get_by_role("button", name="Keep in floating point").click()
    # What Gradio hears of when the menu is left is the layer that is shown.
    page.wait_for_selector("#channels-layer-formats >> text=inputs in floating point")
    page.wait_for_function("layer => decodeURIComponent(location.search).includes(layer)", arg=menu.input_value())
    page.click("#undo")
    wait_for_recipe(page, "minmax-w8a8")


def test_the_map_holds_every_layer_at_every_step(page: Any, mini: VideoModel, shipped: Statistics) -> None:
    sites = tuple(site.name for site in mini.sites if site.name in shipped.low)
    roles = {site.name: site.role for site in mini.sites}
    labels = {value: label for label, value in METRIC_WORDS}
    for metric in (*METRICS[1:], METRICS[0]):
        with answered(page, MAP):
            tick(page, "map-metric", labels[metric])
        table = site_map(shipped, sites, metric, ActivationFormat(8))
        assert words(page, MAP) == map_in_words(table, roles)
        (cells,) = traces(page, MAP, "map")
        assert cells["y"] == list(sites)
        shown = unpacked(cells["customdata" if "customdata" in cells else "z"])
        np.testing.assert_allclose(shown, table.values, rtol=1e-4, atol=1e-9)


def test_a_click_on_the_map_chooses_layer_and_step(page: Any, mini: VideoModel) -> None:
    site = next(site.name for site in mini.sites if site.name.endswith("attn2.to_q"))
    place = plot(
        page,
        MAP,
        "map",
        "(({xaxis, yaxis}) => {const box = plot.querySelector('.nsewdrag').getBoundingClientRect();"
        f"return [box.x + xaxis.d2p(5), box.y + yaxis.d2p('{site}')]}})(plot._fullLayout)",
    )
    with answered(page, VIEW):
        page.mouse.click(*place)
    page.wait_for_function("document.querySelector('#channels-step input[type=number]').value === '5'")
    assert page.input_value("#channels-layer select") == site


def test_a_layer_exempted_here_is_exempted_everywhere_and_undo_takes_it_back(page: Any) -> None:
    layer = page.input_value("#channels-layer select")
    assert recipe_name(page) == "minmax-w8a8"
    assert not page.is_enabled("#undo")
    link = page.evaluate("location.search")
    page.get_by_role("button", name="Keep in floating point").click()
    wait_for_recipe(page, "minmax-w8a8+1")
    page.wait_for_selector("#channels-layer-formats >> text=inputs in floating point")
    page.wait_for_function("before => location.search !== before", arg=link)
    assert "minmax-w8a8+1" in page.inner_text("#channels-layer-formats")
    open_tab(page, "Recipe")
    page.wait_for_selector(f"#exempt >> text={layer}")
    page.click("#undo")
    wait_for_recipe(page, "minmax-w8a8")
    page.wait_for_selector(f"#exempt >> text={layer}", state="detached")
    open_tab(page, "Channels")
    page.wait_for_selector("#channels-layer-formats >> text=inputs at 8 bits")
    page.wait_for_selector("#undo[disabled]")
    assert "recipe=minmax-w8a8" in page.evaluate("location.search")


def test_the_file_of_a_figure_holds_its_table(page: Any, mini: VideoModel, shipped: Statistics) -> None:
    page.hover(f"#{VIEW} [data-slot=ranges]")
    with page.expect_download() as download:
        page.click(f"#{VIEW} [data-slot=ranges] button[data-format=csv]")
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    (bars,) = [trace for trace in traces(page, VIEW, "ranges") if trace["type"] == "bar"]
    np.testing.assert_allclose([float(row["low"]) for row in rows], unpacked(bars["base"]), rtol=1e-6)
