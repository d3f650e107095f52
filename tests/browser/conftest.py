"""Pages of the running app in the system's Chromium, for user stories."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.live_pages import RUN

ROOT = Path(__file__).parents[2]
LAUNCH = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A browser, or a skip that says what is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("browser tests need Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=LAUNCH)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def app_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python app.py` in a process of its own, stopped at the end."""
    log = tmp_path_factory.mktemp("app") / "log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(log.parent / "gradio")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"app.py did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def visiting(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Yields what opens the page as a new visitor; console errors fail the test."""
    contexts, errors = [], []

    def opened(query: str = "", **options: Any) -> Any:
        context = chromium.new_context(viewport=options.pop("viewport", {"width": 1280, "height": 900}), **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(address + query)
        page.wait_for_selector("#device >> text=Runs on", timeout=RUN)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors, errors


@pytest.fixture
def visit(chromium: Any, app_address: str) -> Iterator[Any]:
    """Open the page as a new visitor."""
    with visiting(chromium, app_address) as opened:
        yield opened


@pytest.fixture(scope="module")
def tall_page(chromium: Any, app_address: str) -> Iterator[Any]:
    """One page for all tests of a module, in a window so high that every figure of a tab is drawn."""
    with visiting(chromium, app_address) as opened:
        page = opened(viewport={"width": 1280, "height": 3200})
        page.set_default_timeout(60_000)
        yield page
