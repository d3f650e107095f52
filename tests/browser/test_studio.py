"""User stories on the page: open, compare, cancel, change the recipe, two visitors at once, bad input."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.live_pages import RUN, choose, open_tab, set_number, wait_for_recipe
from ui.method_words import METHODS

pytestmark = pytest.mark.browser

READY = "[data-testid=comparator][data-state=ready]"


def choose_recipe(page: Any, name: str) -> None:
    """Pick the method and the bits of a named recipe."""
    method, _, bits = name.rpartition("-")
    choose(page, "method-menu", METHODS[method][0])
    choose(page, "bits-menu", bits.upper())
    wait_for_recipe(page, name)


def menus(page: Any) -> tuple[str, str]:
    """What the two menus of the recipe show."""
    return page.input_value("#method-menu input"), page.input_value("#bits-menu input")


def compare(page: Any, steps: int = 4) -> dict[str, str]:
    """Press Generate and wait; the figures on the score cards."""
    set_number(page, "compare-steps", steps)
    page.click("#compare-generate")
    page.wait_for_selector("#compare-cancel:not([disabled])", timeout=RUN)
    page.wait_for_selector("#compare-generate:not([disabled])", timeout=RUN)
    page.wait_for_selector(READY, timeout=RUN)
    labels = page.locator("#compare-scores .label").all_inner_texts()
    return dict(zip(labels, page.locator("#compare-scores .value").all_inner_texts(), strict=True))


def test_the_default_comparison_shows_two_clips_and_their_scores(visit: Any) -> None:
    page = visit()
    scores = compare(page, 25)
    assert float(scores["PSNR"].split()[0]) > 30, scores
    assert float(scores["SSIM"]) > 0.95
    page.click("[data-testid=comparator-play]")  # pauses
    page.keyboard.press("Home")
    page.click("[data-testid=comparator-next]")
    assert page.get_attribute("[data-testid=comparator]", "data-frame") == "1"
    with page.expect_download() as download:
        page.get_by_role("button", name="Scores (json)").click()
    values = json.loads(download.value.path().read_text())
    assert round(values["psnr_db"], 1) == float(scores["PSNR"].split()[0])
    assert len(values["latent_error"]) == 25


def test_fewer_bits_are_further_from_the_reference(visit: Any) -> None:
    page = visit()
    fine = compare(page)
    choose_recipe(page, "minmax-w4a4")
    coarse = compare(page)
    assert float(coarse["SSIM"]) < float(fine["SSIM"])
    assert "reused" in page.inner_text("#compare-status")


def test_cancel_stops_the_run_and_leaves_the_page_usable(visit: Any) -> None:
    page = visit()
    set_number(page, "compare-steps", 50)
    page.click("#compare-generate")
    page.wait_for_selector("#compare-status >> text=/step \\d+ of 50/", timeout=RUN)
    page.click("#compare-cancel")
    page.wait_for_selector("#compare-status >> text=Cancelled", timeout=15_000)
    assert page.is_enabled("#compare-generate")
    assert float(compare(page)["SSIM"]) > 0.5


def test_two_visitors_with_different_recipes_get_what_each_gets_alone(visit: Any) -> None:
    first, second = visit(), visit()
    choose_recipe(second, "minmax-w4a4")
    alone = [compare(first), compare(second)]
    for page in (first, second):
        set_number(page, "compare-steps", 4)
        page.click("#compare-generate")
    together = []
    for page in (first, second):
        page.wait_for_selector("#compare-generate:not([disabled])", timeout=RUN)
        page.wait_for_selector("#compare-status >> text=Sampling, measured", timeout=RUN)
        together.append(
            dict(
                zip(
                    page.locator("#compare-scores .label").all_inner_texts(),
                    page.locator("#compare-scores .value").all_inner_texts(),
                    strict=True,
                )
            )
        )
    assert together == alone
    assert alone[0] != alone[1]


def test_the_recipe_tab_changes_sizes_everywhere(visit: Any) -> None:
    page = visit()
    before = page.inner_text("#recipe-summary")
    open_tab(page, "Recipe")
    set_number(page, "weight-bits", 3)
    page.wait_for_function("before => document.querySelector('#recipe-summary').innerText !== before", arg=before)
    wait_for_recipe(page, "minmax-w3a8")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('minmax-w3a8')")
    assert menus(page) == ("Min-max", "W3A8")
    open_tab(page, "Model")
    row = page.locator("[data-role=temporal_attention] td").all_inner_texts()
    assert row[4:6] == ["3", "8"], row


def test_an_exempted_role_stays_in_floating_point(visit: Any) -> None:
    page = visit()
    open_tab(page, "Recipe")
    page.click("#exempt input")
    page.get_by_role("option", name="temporal_features", exact=True).click()
    page.keyboard.press("Escape")  # the list stays open for more
    wait_for_recipe(page, "minmax-w8a8+1")
    open_tab(page, "Model")
    row = page.locator("[data-role=temporal_features] td")
    page.wait_for_function("() => document.querySelector('[data-role=temporal_features]').innerText.includes('float')")
    assert row.all_inner_texts()[4:6] == ["float", "float"]


def test_a_link_opens_its_recipe_whole(visit: Any) -> None:
    for _ in range(4):  # a mixture of two recipes once came out in one of four visits
        page = visit("?recipe=qvd-w4a6")
        wait_for_recipe(page, "qvd-w4a6")
        page.wait_for_timeout(1000)
        assert page.inner_text("[data-testid=recipe-name]") == "qvd-w4a6"
        assert menus(page) == ("QVD", "W4A6")
        assert "recipe=qvd-w4a6" in page.url


def test_methods_chosen_in_the_recipe_tab_make_the_named_recipe(visit: Any) -> None:
    page = visit("?recipe=qvd-base-w4a8")
    wait_for_recipe(page, "qvd-base-w4a8")
    open_tab(page, "Recipe")
    page.locator("#temporal-method").get_by_text("HTDQ", exact=True).click()
    wait_for_recipe(page, "qvd-htdq-w4a8")
    page.locator("#channel-method").get_by_text("SCRI", exact=True).click()
    wait_for_recipe(page, "qvd-w4a8")
    assert menus(page) == ("QVD", "W4A8")
    page.wait_for_selector("text=/Here: 11 of the \\d+ layers of animatediff-mini/")
    page.wait_for_selector("text=/Here: 60 of the \\d+ layers of animatediff-mini/")
    page.locator("#channel-parts").get_by_text("shift", exact=True).click()
    wait_for_recipe(page, "custom-w4a8+2")


def test_a_custom_recipe_keeps_its_method_when_its_bits_change_and_travels_in_its_link(visit: Any) -> None:
    page = visit("?recipe=qvd-w4a8")
    wait_for_recipe(page, "qvd-w4a8")
    open_tab(page, "Recipe")
    page.get_by_text("HTDQ in detail").click()
    page.locator("#htdq-searched").get_by_role("checkbox").click()
    page.locator("#htdq-coefficient input").fill("2.5")
    page.keyboard.press("Enter")
    wait_for_recipe(page, "custom-w4a8+2")
    page.wait_for_function("""() => decodeURIComponent(location.search).includes('"coefficient":2.5')""")
    choose(page, "bits-menu", "W6A6")
    wait_for_recipe(page, "custom-w6a6+2")
    assert menus(page) == ("Custom", "W6A6")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('custom-w6a6')")
    address = page.url
    other = visit(address[address.index("?") :])
    wait_for_recipe(other, "custom-w6a6+2")
    open_tab(other, "Recipe")
    other.get_by_text("HTDQ in detail").click()
    other.wait_for_function("() => document.querySelector('#htdq-coefficient input')?.value === '2.5'")
    choose(other, "method-menu", "QVD")
    wait_for_recipe(other, "qvd-w6a6")
    other.wait_for_selector("#htdq-searched input:checked")  # the tab follows the menu


def test_quick_edits_are_all_kept(visit: Any) -> None:
    """What the server answers to the first of them must not undo the others."""
    page = visit("?recipe=smoothquant-w8a8")
    wait_for_recipe(page, "smoothquant-w8a8")
    open_tab(page, "Recipe")
    page.focus("#channel-strength input[type=range]")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.locator("#input-range").get_by_text("per step").click()
    page.locator("#weight-grid").get_by_text("symmetric").click()
    page.wait_for_function("""() => {
      const link = decodeURIComponent(location.search);
      return ['"strength":0.62', 'static_per_step', '"symmetric":true'].every(part => link.includes(part));
    }""")
    choose(page, "method-menu", "SmoothQuant")
    wait_for_recipe(page, "smoothquant-w8a8")
    page.wait_for_function("() => document.querySelector('#channel-strength input[type=number]').value === '0.5'")


def test_an_impossible_number_is_explained_and_taken_back(visit: Any) -> None:
    page = visit("?recipe=qvd-w4a8")
    wait_for_recipe(page, "qvd-w4a8")
    open_tab(page, "Recipe")
    # The recipe's own numbers arrive in one update, which would take back what is typed before it.
    page.wait_for_function("() => document.querySelector('#weight-bits input[type=number]').value === '4'")
    page.get_by_text("HTDQ in detail").click()
    page.locator("#htdq-radius input").fill("0")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=radius = 0 is out of range", timeout=RUN)
    page.wait_for_function("() => document.querySelector('#htdq-radius input').value === '2'")
    set_number(page, "weight-bits", 3)
    wait_for_recipe(page, "qvd-w3a8")


def test_steps_a_recipe_is_not_made_for_are_refused_before_the_run(visit: Any) -> None:
    page = visit("?recipe=tabulated-w8a8")
    wait_for_recipe(page, "tabulated-w8a8")
    set_number(page, "compare-steps", 7)
    page.click("#compare-generate")
    page.wait_for_selector("text=Set Steps to 25", timeout=RUN)
    assert page.is_enabled("#compare-generate")


def test_an_impossible_prompt_is_explained_and_nothing_is_lost(visit: Any) -> None:
    page = visit()
    page.fill("#compare-prompt textarea", "a red circle " * 20)
    page.click("#compare-generate")
    page.wait_for_selector("text=tokens, but animatediff-mini reads 20", timeout=RUN)
    assert page.is_enabled("#compare-generate")
    assert page.input_value("#compare-prompt textarea").startswith("a red circle")


def test_a_damaged_link_is_explained_and_the_page_works(visit: Any) -> None:
    page = visit("?recipe=nope")
    page.wait_for_selector("text=Unknown recipe 'nope'", timeout=RUN)
    assert menus(page) == ("Min-max", "W8A8")
    assert float(compare(page)["SSIM"]) > 0.5


def test_a_failed_run_keeps_what_was_compared_before(visit: Any) -> None:
    page = visit()
    before = compare(page)
    page.fill("#compare-prompt textarea", "a red circle " * 20)
    page.click("#compare-generate")
    page.wait_for_selector("text=tokens, but animatediff-mini reads 20", timeout=RUN)
    page.wait_for_selector(READY)
    assert page.locator("#compare-scores .value").all_inner_texts()[0] == before["PSNR"]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window(chromium: Any, app_address: str, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    page.goto(f"{app_address}?__theme={scheme}&recipe=qvd-w4a8")
    page.wait_for_selector("#compare-generate", timeout=RUN)
    page.wait_for_timeout(500)  # the sidebar folds with a transition
    page.click("#compare-generate", trial=True)  # nothing covers the button
    for tab in ("Compare", "Model", "Recipe", "Channels", "Temporal", "Errors", "Sensitivity"):
        open_tab(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    context.close()
