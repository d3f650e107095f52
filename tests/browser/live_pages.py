"""What browser tests do on a page, and how they read what it shows."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

RUN = 180_000  # milliseconds: what runs a model, on a slow and busy machine

COUNT_CONTEXTS = """
window.contexts = 0;
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  if (String(kind).startsWith('webgl')) window.contexts++;
  return get.call(this, kind, ...rest);
};
"""


def set_number(page: Any, elem_id: str, value: float) -> None:
    """Type into the number beside a slider."""
    page.fill(f"#{elem_id} input[type=number]", str(value))
    page.keyboard.press("Tab")


def choose(page: Any, elem_id: str, label: str) -> None:
    """Pick an entry of a menu."""
    page.click(f"#{elem_id} input")
    page.get_by_role("option", name=label, exact=True).click()


def tick(page: Any, elem_id: str, label: str) -> None:
    """Click an entry of a radio group, or a checkbox."""
    page.locator(f"#{elem_id}").get_by_text(label, exact=True).click()


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def recipe_name(page: Any) -> str:
    return str(page.inner_text("[data-testid=recipe-name]"))


def wait_for_recipe(page: Any, name: str) -> None:
    shown = "document.querySelector('[data-testid=recipe-name]')?.innerText"
    page.wait_for_function(f"name => {shown} === name", arg=name, timeout=RUN)


@contextmanager
def answered(page: Any, view: str) -> Iterator[None]:
    """Do something that changes what a view shows, and wait until it shows it."""
    shown = f"document.querySelector('#{view} .qvd-view')?.dataset.shown"  # of a tab not yet opened, nothing
    before = page.evaluate(shown)
    yield
    ready = f"document.querySelector('#{view} .qvd-view')?.dataset.state === 'ready'"
    page.wait_for_function(f"before => {shown} !== before && {ready}", arg=before)
    page.evaluate(
        f"""async () => {{
          for (let before; before !== {shown} || !{ready};) {{
            before = {shown};
            await new Promise(resolve => setTimeout(resolve, 100));
          }}
        }}"""
    )


def words(page: Any, view: str, slot: str = "sentence") -> str:
    return str(page.locator(f"#{view} [data-slot={slot}]").inner_text())


def plot(page: Any, view: str, slot: str, expression: str) -> Any:
    """An expression in the page about `plot`, the node of a figure."""
    return page.evaluate(
        f"(() => {{ const plot = document.querySelector('#{view} [data-slot={slot}] .qvd-figure-plot');"
        f" return {expression}; }})()"
    )


def traces(page: Any, view: str, slot: str) -> list[dict[str, Any]]:
    """What plotly was given to draw."""
    page.locator(f"#{view} [data-slot={slot}]").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{view} [data-slot={slot}][data-state=ready]")
    found: list[dict[str, Any]] = plot(page, view, slot, "JSON.parse(JSON.stringify(plot.data))")
    return found


def unpacked(values: Any) -> np.ndarray:
    """Numbers of a trace: a list, or plotly's packed array."""
    if not isinstance(values, Mapping):
        return np.array(values)
    if "bdata" not in values:  # a typed array becomes an object of its indices in JSON
        return np.array(list(values.values()))
    flat = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return flat.reshape([int(size) for size in values["shape"].split(",")]) if "shape" in values else flat
