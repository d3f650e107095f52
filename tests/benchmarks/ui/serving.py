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
VIEW = {"width": 1280, "height": 1400}  # every panel of a tab fits, so that all of it is really painted


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
    """A new visitor's page at `address` on which `control` and its figures are ready; `scripts` run in it first."""
    page = browser.new_page(viewport=VIEW)
    page.set_default_timeout(120_000)
    for script in (PROBE, *scripts):
        page.add_init_script(path=script)
    page.goto(address)
    if control != PLAIN:
        page.wait_for_selector("#device >> text=Runs on")
        page.get_by_role("tab", name=control.tab, exact=True).click()
        for panel in control.panels:
            page.wait_for_selector(f"#{panel} [data-state=ready]")
    for panel in control.panels:
        page.wait_for_selector(f"#{panel} .main-svg")
    page.wait_for_timeout(500)
    yield page
    page.close()


def fit(page: Any, width: float) -> None:
    """Resize the plain page so that its figure is as wide as the panel it is compared with."""
    plot = page.locator(f"#{PLAIN.panels[0]} .main-svg").first
    size = page.viewport_size
    page.set_viewport_size({**size, "width": round(size["width"] + width - plot.bounding_box()["width"])})
    page.wait_for_timeout(500)
