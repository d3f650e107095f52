"""The Errors and Sensitivity tabs: runs with progress and Cancel, and a budget that becomes the recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from analysis.architecture import in_words as amount
from qvd_core.allocation import pareto_front
from qvd_core.calibration.calibrate import embedded_statistics
from qvd_core.cost import site_costs
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sensitivity import proxy_sensitivity
from tests.browser.live_pages import (
    RUN,
    answered,
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
from ui.sensitivity_tab import FRONT_POINTS

pytestmark = pytest.mark.browser
SENSITIVITY = "sensitivity-view"


@pytest.fixture
def page(tall_page: Any) -> Any:
    return tall_page


def start_and_cancel(page: Any, run: str, progress: str) -> None:
    """Start a run, wait for its progress, stop it, and find the page usable."""
    page.click(f"#{run}-start")
    page.wait_for_selector(f"#{run}-status >> text=/{progress}/", timeout=RUN)
    assert not page.is_enabled(f"#{run}-start")
    page.click(f"#{run}-cancel")
    page.wait_for_selector(f"#{run}-status >> text=Cancelled.", timeout=15_000)
    page.wait_for_selector(f"#{run}-start:not([disabled])")
    page.wait_for_selector(f"#{run}-cancel[disabled]")


def test_the_search_for_the_cause_reports_and_can_be_stopped(page: Any) -> None:
    open_tab(page, "Errors")
    start_and_cancel(page, "causes", r"step \d+ of 25")
    assert page.locator("#growth-view [data-slot=growth][data-state=ready]").count() == 0


def test_errors_of_layers_are_mapped_and_a_click_chooses_one(page: Any) -> None:
    open_tab(page, "Errors")
    with answered(page, "layers-view"):
        page.click("#layers-start")
        page.wait_for_selector("#layers-view .qvd-view[data-state=ready]", timeout=RUN)
    assert words(page, "layers-view").startswith("minmax-w8a8: Layers by themselves err most at")
    (cells,) = traces(page, "layers-view", "map")
    errors = unpacked(cells["customdata"])
    assert errors.shape[1] == 25
    worst = int(np.nanmean(errors, axis=1).argmax())
    first = page.locator("#layers-view [data-slot=worst] tbody tr").first.locator("td").all_inner_texts()
    assert first[0] == cells["y"][worst]
    assert first[2] == f"{np.nanmean(errors, axis=1)[worst]:.2e}"
    place = plot(
        page,
        "layers-view",
        "map",
        "(({xaxis, yaxis}) => {const box = plot.querySelector('.nsewdrag').getBoundingClientRect();"
        f"return [box.x + xaxis.d2p(3), box.y + yaxis.d2p('{first[0]}')]}})(plot._fullLayout)",
    )
    page.mouse.click(*place)
    page.wait_for_function(
        "name => document.querySelector('#errors-layer select').value === name", arg=cells["y"][worst]
    )
    with page.expect_download() as download:  # of a result the server keeps
        page.hover("#layers-view [data-slot=map]")
        page.click("#layers-view [data-slot=map] button[data-format=csv]")
    assert len(download.value.path().read_text().splitlines()) == 1 + errors.size


def test_a_budget_gives_the_bits_the_library_gives_and_becomes_the_recipe(page: Any, mini: VideoModel) -> None:
    open_tab(page, "Sensitivity")
    page.wait_for_selector(f"#{SENSITIVITY} .qvd-view[data-state=ready]", timeout=RUN)
    statistics = embedded_statistics(mini)
    assert statistics is not None
    proxy = proxy_sensitivity(mini, get_recipe("minmax-w8a8"), statistics)
    whole = site_costs(mini.sites, Recipe("fp16", None, None), statistics.macs, mini.spec.steps)
    for kind, label in (("bops", "bit operations"), ("bytes", "size of weights")):
        with answered(page, SENSITIVITY):
            tick(page, "sensitivity-cost", label)
        with answered(page, SENSITIVITY):
            set_number(page, "sensitivity-budget", {"bops": 12, "bytes": 30}[kind])
        percent = int(page.input_value("#sensitivity-budget input[type=number]"))
        front = pareto_front(mini.sites, proxy, statistics.macs, cost=kind, points=FRONT_POINTS, steps=mini.spec.steps)
        limit = percent / 100 * sum(c.bytes_before if kind == "bytes" else c.bops_before or 0 for c in whole)
        affordable = [one for one in front if (one.bytes if kind == "bytes" else one.bops or 0) <= limit]
        best = min(affordable or front[:1], key=lambda one: one.error)
        cards = words(page, SENSITIVITY, "cards")
        assert amount(best.bytes, "B") in cards
        assert f"{best.error:.2e}" in cards
    with answered(page, SENSITIVITY):
        tick(page, "sensitivity-bits", "w4a4")
    page.click("#sensitivity-apply")
    page.wait_for_function(
        "() => document.querySelector('[data-testid=recipe-name]').innerText !== 'minmax-w8a8'", timeout=RUN
    )
    assert recipe_name(page) == best.recipe.name
    page.wait_for_function(
        "size => document.querySelector('#recipe-summary').innerText.includes(size)", arg=amount(best.bytes, "B")
    )
    page.click("#undo")
    wait_for_recipe(page, "minmax-w8a8")


def test_a_measurement_reports_and_can_be_stopped(page: Any) -> None:
    open_tab(page, "Sensitivity")
    start_and_cancel(page, "sensitivity", r"call \d+ of \d+")
