"""How soon after `python app.py` a visitor can press Generate, and how soon the default comparison is done.

    python -m tests.benchmarks.page_ready --json

Starts the app in a process of its own, opens it in the system's Chromium, and reports medians.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LAUNCH = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=LAUNCH)
        rounds = [_measure(browser) for _ in range(arguments.rounds)]
        browser.close()
    medians = {name: round(statistics.median(r[name] for r in rounds), 2) for name in rounds[0]}
    if arguments.json:
        print(json.dumps(medians))
    else:
        print("\n".join(f"{name:<24} {seconds:6.2f} s (median of {len(rounds)})" for name, seconds in medians.items()))


def _measure(browser: Any) -> dict[str, float]:
    started = time.perf_counter()
    command = [sys.executable, "-u", "app.py"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#compare-generate:not([disabled])")
        ready = time.perf_counter() - started
        page.wait_for_selector("#device >> text=Runs on", timeout=120_000)
        loaded = time.perf_counter() - started
        pressed = time.perf_counter()
        page.click("#compare-generate")
        page.wait_for_selector("[data-testid=comparator][data-state=ready]", timeout=300_000)
        compared = time.perf_counter() - pressed
        page.close()
    finally:
        process.terminate()
        process.wait(20)
    return {"page_ready": ready, "model_loaded": loaded, "default_comparison": compared}


if __name__ == "__main__":
    main()
