"""The Temporal tab shows what the library computes, whatever control moves, and hands its HTDQ to the recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright")

from analysis.htdq import features_of, htdq_table, in_words
from analysis.temporal import in_words as distribution_in_words
from analysis.temporal import temporal_table
from qvd_core.formats import HTDQ
from qvd_core.models.loader import VideoModel
from tests.browser.live_pages import (
    answered,
    choose,
    open_tab,
    recipe_name,
    set_number,
    tick,
    traces,
    unpacked,
    wait_for_recipe,
    words,
)
from ui.method_words import METHODS

pytestmark = pytest.mark.browser
VIEW, SIMILARITY = "temporal-view", "similarity-view"


@pytest.fixture(scope="module")
def page(tall_page: Any) -> Any:
    with answered(tall_page, VIEW), answered(tall_page, SIMILARITY):
        open_tab(tall_page, "Temporal")
    return tall_page


def check(page: Any, model: VideoModel, steps: int, bits: int, method: HTDQ) -> None:
    """What the page shows is what a direct computation gives."""
    table = htdq_table(model, steps, bits, method)
    plain = temporal_table(features_of(model, steps), bits)
    assert words(page, VIEW) == distribution_in_words(plain)
    assert words(page, VIEW, "htdq") == in_words(table)
    assert f"{table.uniform.k:.2g} → {table.logarithmic.k:.2g}" in words(page, VIEW, "scores")
    assert f"{plain.zero_share:.1%}" in words(page, VIEW, "cards")
    matrices = {
        "full": table.similarity,
        "uniform": table.uniform.similarity,
        "logarithmic": table.logarithmic.similarity,
    }
    for slot, matrix in matrices.items():
        np.testing.assert_allclose(unpacked(traces(page, SIMILARITY, slot)[0]["z"]), matrix, rtol=1e-5)
    assert page.is_visible(f"#{VIEW} [data-slot=search]") == (table.search is not None)
    if table.search is not None:
        k, *_, chosen = traces(page, VIEW, "search")
        shown = unpacked(k["y"])
        np.testing.assert_allclose(shown[table.search.best], float(table.search.k.min()), rtol=1e-4)
        np.testing.assert_allclose(unpacked(chosen["x"]), [table.coefficient], rtol=1e-5)


def test_every_control_finds_the_numbers_of_the_tables(page: Any, mini: VideoModel) -> None:
    steps, bits, method = mini.spec.steps, 8, HTDQ()
    check(page, mini, steps, bits, method)
    moves: list[tuple[Any, str, Any, dict[str, Any]]] = [
        (set_number, "temporal-steps", 10, {}),
        (set_number, "temporal-bits", 5, {}),
        (choose, "temporal-form", "H2: α inside the logarithm", {"form": "H2"}),
        (tick, "temporal-sign", "The sign takes one of the bits", {"sign_inside": False}),
        (set_number, "temporal-radius", 4, {"radius": 4}),
        (set_number, "temporal-weight", 3, {"discriminability_weight": 3}),
        (tick, "temporal-search", "Search α for the least K", {"coefficient": 1.0}),
        (set_number, "temporal-coefficient", -1.5, {"coefficient": 2**-1.5}),
        (
            choose,
            "temporal-form",
            "port: base 2, no α",
            {"form": "H1", "port": True, "coefficient": None, "sign_inside": True},
        ),
        (
            choose,
            "temporal-form",
            "H1: α multiplies the logarithm",
            {"port": False, "coefficient": 2**-1.5, "sign_inside": False},
        ),
    ]
    for move, control, value, change in moves:
        steps = value if control == "temporal-steps" else steps
        bits = value if control == "temporal-bits" else bits
        method = dataclasses.replace(method, **change)
        with answered(page, VIEW), answered(page, SIMILARITY):
            move(page, control, value)
        check(page, mini, steps, bits, method)


def test_the_htdq_shown_becomes_the_recipes_and_undo_takes_it_back(page: Any) -> None:
    before = recipe_name(page)
    page.click("#temporal-use")
    page.wait_for_function(
        "before => document.querySelector('[data-testid=recipe-name]').innerText !== before", arg=before
    )
    assert recipe_name(page).startswith("custom-")
    page.wait_for_selector(f"#{VIEW} [data-slot=sentence] >> text=on a logarithmic grid (HTDQ)")
    page.click("#undo")
    wait_for_recipe(page, before)
    page.wait_for_function(f"() => !document.querySelector('#{VIEW} [data-slot=sentence]').innerText.includes('HTDQ')")


def test_the_controls_follow_the_recipe(page: Any, mini: VideoModel) -> None:
    choose(page, "method-menu", METHODS["qvd"][0])
    wait_for_recipe(page, "qvd-w8a8")
    page.wait_for_selector(f"#{VIEW} [data-slot=sentence] >> text=on a logarithmic grid (HTDQ)")
    page.wait_for_function("() => document.querySelector('#temporal-bits input[type=number]').value === '8'")
    assert page.is_checked("#temporal-search input")
    page.wait_for_function(
        f"""words => document.querySelector('#{VIEW} [data-slot=htdq]').innerText === words""",
        arg=in_words(htdq_table(mini, 10, 8, HTDQ())),
    )


def test_a_link_sets_the_controls_before_the_tab_opens(visit: Any) -> None:
    page = visit("?recipe=qvd-w4a4")
    wait_for_recipe(page, "qvd-w4a4")
    with answered(page, VIEW):
        open_tab(page, "Temporal")
    page.wait_for_function("() => document.querySelector('#temporal-bits input[type=number]').value === '4'")
    page.wait_for_selector(f"#{VIEW} [data-slot=sentence] >> text=At 4 bits")
