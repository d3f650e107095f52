"""Using a control as a visitor does: with the mouse, at a value it does not have yet."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.benchmarks.ui.controls import Control

LISTENED = {
    "slider": ("input", "input[type=range]"),
    "radio": ("input", "input[type=radio]"),
    "checkbox": ("input", "input[type=checkbox]"),
    "dropdown": ("mousedown", "[role=option]"),
    "menu": ("keydown", "select"),
}
"""By kind: the DOM event from which on a change is under way, and what it happens to. The handler runs with it."""

KEYS = {True: ("ArrowDown", "PageDown", "End"), False: ("ArrowUp", "PageUp", "Home")}
"""What walks on and back through a menu of the browser's own, whose list no script can click."""

OPENING = 400  # ms in which a menu unfolds, and a visitor reads


def use(page: Any, control: Control, random: Random) -> None:
    """Choose another value at random."""
    if control.kind == "slider":
        page.mouse.click(*slider_place(page, control, other_value(page, control, random)))
    elif control.kind == "radio":
        unchecked = page.locator(f"#{control.elem_id} label:has(input[type=radio]:not(:checked))")
        unchecked.nth(random.randrange(unchecked.count())).click()
    elif control.kind == "checkbox":
        page.locator(f"#{control.elem_id} input[type=checkbox]").click()
    elif control.kind == "menu":
        menu = page.locator(f"#{control.elem_id} select")
        early = menu.evaluate("node => node.selectedIndex < node.options.length / 2")
        menu.press(random.choice(KEYS[early]))
    else:
        _choose_entry(page, control, random)


def other_value(page: Any, control: Control, random: Random) -> float:
    """A value of the slider so far from its present one that a click can tell them apart."""
    low, high, step, now = page.locator(f"#{control.elem_id} input[type=range]").evaluate(
        "node => [node.min, node.max, node.step, node.value].map(Number)"
    )
    values = [low + step * i for i in range(round((high - low) / step) + 1)]
    return random.choice([value for value in values if abs(value - now) > 0.03 * (high - low)])


def slider_place(page: Any, control: Control, value: float) -> tuple[float, float]:
    """Where on the page the slider's track has `value`, within a step."""
    slider = page.locator(f"#{control.elem_id} input[type=range]")
    low, high = slider.evaluate("node => [node.min, node.max].map(Number)")
    box, thumb = slider.bounding_box(), 16
    share = (value - low) / (high - low)
    return box["x"] + thumb / 2 + share * (box["width"] - thumb), box["y"] + box["height"] / 2


def _choose_entry(page: Any, control: Control, random: Random) -> None:
    menu = page.locator(f"#{control.elem_id} input")
    menu.evaluate("node => node.blur()")
    menu.click()
    options = page.locator("[role=option]")  # not those of the browser's own menus
    options.first.wait_for()
    chosen = options.evaluate_all("nodes => nodes.findIndex(node => node.ariaSelected === 'true')")
    places = [place for place in range(options.count()) if place != chosen]
    option = options.nth(random.choice(places))
    option.scroll_into_view_if_needed()
    page.wait_for_timeout(OPENING)
    option.click()
