"""Servers in processes of their own, and the pages they serve."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.ui.controls import PLAIN, Control

ROOT = Path(__file__).parents[3]
PROBE = Path(__file__).with_name("probe.js")
LAUNCH = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDTH = 1280


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """`python COMMAND` while it is needed; yields the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-u", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def opened(browser: Any, address: str, control: Control, *scripts: Path) -> Iterator[Any]:
    """A new visitor's page at `address` on which `control` works and its view is ready; `scripts` run in it first.

    The control is at the top of the window, so that as much as possible of what it changes can be seen.
    """
    page = browser.new_page(viewport={"width": WIDTH, "height": control.window})
    page.set_default_timeout(120_000)
    for script in (PROBE, *scripts):
        page.add_init_script(path=script)
    page.goto(address)
    if control != PLAIN:
        page.wait_for_selector("#device >> text=Runs on")
        page.get_by_role("tab", name=control.tab, exact=True).click()
        page.wait_for_selector(f"#{control.view} .qvd-view[data-state=ready]")
        for elem_id, label in control.before:
            page.locator(f"#{elem_id}").get_by_text(label, exact=True).click()
    page.locator(f"#{control.elem_id}").evaluate("node => node.scrollIntoView({block: 'start'})")
    page.wait_for_selector(f"#{control.view} .main-svg")
    page.wait_for_timeout(1000)
    yield page
    page.close()


def fit(page: Any, width: float) -> None:
    """Resize the plain page so that its figure is as wide as the one it is compared with."""
    plot = page.locator(f"#{PLAIN.view} .main-svg").first
    size = page.viewport_size
    page.set_viewport_size({**size, "width": round(size["width"] + width - plot.bounding_box()["width"])})
    page.wait_for_timeout(500)
