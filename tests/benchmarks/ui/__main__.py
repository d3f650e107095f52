"""How long after a control of the analysis tabs has changed are the new pixels on the screen?

    python -m tests.benchmarks.ui [--json] [--repeats N] [--only ELEM_ID ...] [--drags | --growth | --stages]

Starts the app in a process of its own, opens it in the system's Chromium and uses every control in `controls`
with the mouse. A time begins with the DOM event of the control and ends two animation frames after the last figure
or text in the window has changed; drawings that change nothing do not count. In between, the first figure of the
Channels tab is timed through plain `gr.Plot`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
from random import Random
from typing import Any

import gradio

from tests.benchmarks.ui.controls import CONTROLS, PLAIN, Control
from tests.benchmarks.ui.growth import growth
from tests.benchmarks.ui.measuring import change, drag, milliseconds, summary, warm_up
from tests.benchmarks.ui.serving import LAUNCH, fit, opened, serving
from tests.benchmarks.ui.stages import HOOKS, stages

DRAGS = 3
PLAIN_AFTER = 5  # samples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ui", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--repeats", type=int, default=30, help="samples per control")
    parser.add_argument("--only", nargs="+", metavar="ELEM_ID", help="measure these controls only")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--drags", action="store_true", help="drag sliders instead: from the last change on")
    instead.add_argument("--growth", action="store_true", help="measure what 200 updates leave behind instead")
    instead.add_argument("--stages", action="store_true", help="measure where the time goes instead")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    controls = [control for control in CONTROLS if not arguments.only or control.elem_id in arguments.only]
    if not controls:
        parser.error(f"--only knows {', '.join(control.elem_id for control in CONTROLS)}")

    from playwright.sync_api import sync_playwright

    load_before = os.getloadavg()[0]
    with (
        sync_playwright() as playwright,
        serving("app.py") as app,
        serving("-m", "tests.benchmarks.ui.plain_plot") as plain,
    ):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=LAUNCH)
        if arguments.drags:
            results = {"drag": _drags(browser, app, controls)}
        elif arguments.growth:
            results = _growths(browser, app, plain, controls)
        elif arguments.stages:
            results = {"stages_ms": _stages(browser, app, controls, arguments.repeats)}
        else:
            results = _times(browser, app, plain, controls, arguments.repeats)
        results["machine"] = {
            "processor": f"{os.cpu_count()} cores, {platform.machine()}",
            "load_before_and_after": [round(load, 2) for load in (load_before, os.getloadavg()[0])],
            "chromium": browser.version,
            "gradio": gradio.__version__,
        }
        browser.close()
    print(json.dumps(results, indent=2) if arguments.json else _table(results))


def _times(browser: Any, app: str, plain: str, controls: list[Control], repeats: int) -> dict[str, Any]:
    found, figures, beside = {}, {}, []
    with opened(browser, plain, PLAIN) as other:
        warm_up(other, PLAIN, Random(0))
        for control in controls:
            random = Random(0)
            with opened(browser, app, control) as page:
                fit(other, page.locator(f"#{control.view} .main-svg").first.bounding_box()["width"])
                page.bring_to_front()
                warm_up(page, control, random)
                seen = []
                for sample in range(repeats):
                    seen.append(change(page, control, random))
                    if sample % PLAIN_AFTER == 0:
                        other.bring_to_front()
                        beside.append(milliseconds(change(other, PLAIN, random)))
                        page.bring_to_front()
            found[control.elem_id] = summary([milliseconds(one) for one in seen])
            figures[control.elem_id] = statistics.median(one["figures"] for one in seen)
    return {
        "p95_ms": {name: one["p95_ms"] for name, one in found.items()},
        "median_ms": {name: one["median_ms"] for name, one in found.items()},
        "changed_figures": figures,
        "plain_gr_plot": summary(beside),
        "repeats": repeats,
    }


def _drags(browser: Any, app: str, controls: list[Control]) -> dict[str, Any]:
    """From the last change to the last new pixels, and whether these show the last value."""
    found = {}
    for control in controls:
        if control.kind == "slider":
            with opened(browser, app, control) as page:
                random = Random(0)
                warm_up(page, control, random)
                each = [drag(page, control, random) for _ in range(DRAGS)]
            shown = all(right for _, right in each)
            found[control.elem_id] = {**summary([ms for ms, _ in each]), "final_value_shown": shown}
    return found


def _stages(browser: Any, app: str, controls: list[Control], repeats: int) -> dict[str, dict[str, float]]:
    found = {}
    for control in controls:
        with opened(browser, app, control, HOOKS) as page:
            random = Random(0)
            warm_up(page, control, random)
            found[control.elem_id] = stages(page, control, random, repeats)
    return found


def _growths(browser: Any, app: str, plain: str, controls: list[Control]) -> dict[str, Any]:
    found = {}
    for address, control in (*((app, control) for control in controls), (plain, PLAIN)):
        if control.kind == "slider":
            with opened(browser, address, control) as page:
                found[control.elem_id] = growth(page, control, Random(0))
    return {"growth": found}


def _table(results: dict[str, Any]) -> str:
    lines = [f"{'':<28}{'median':>9}{'p95':>9}   milliseconds; changed figures"] if "p95_ms" in results else []
    for name in results.get("p95_ms", ()):
        times = f"{results['median_ms'][name]:9.1f}{results['p95_ms'][name]:9.1f}"
        lines.append(f"{name:<28}{times}   {results['changed_figures'][name]:g}")
    if "plain_gr_plot" in results:
        plain = results["plain_gr_plot"]
        lines.append(f"{'plain gr.Plot':<28}{plain['median_ms']:9.1f}{plain['p95_ms']:9.1f}   1")
    for name, one in results.get("drag", {}).items():
        right = "the last value is shown" if one["final_value_shown"] else "ANOTHER VALUE IS SHOWN"
        lines.append(f"{'drag ' + name:<28}{one['median_ms']:9.1f}{one['p95_ms']:9.1f}   {right}")
    for name, one in results.get("stages_ms", {}).items():
        lines.append(name + "".join(f"\n    {stage:<20}{ms:9.1f}" for stage, ms in one.items()))
    for name, one in results.get("growth", {}).items():
        changes = ", ".join(f"{key} {value} to {one['after'][key]}" for key, value in one["before"].items())
        lines.append(f"{name}: {one['updates']} updates, {one['webgl_contexts']} WebGL contexts, {changes}")
    lines.append(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in results["machine"].items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
