"""Whether many updates leave anything behind in the page."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.benchmarks.ui.controls import Control
from tests.benchmarks.ui.measuring import change, warm_up

UPDATES = 200
COUNTS = {"heap_mb": "JSHeapUsedSize", "dom_nodes": "Nodes", "listeners": "JSEventListeners"}


def growth(page: Any, control: Control, random: Random) -> dict[str, Any]:
    """Heap, nodes and listeners before and after `UPDATES` changes, each time after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    session.send("HeapProfiler.enable")
    warm_up(page, control, random)
    before = _counts(session)
    for _ in range(UPDATES):
        change(page, control, random)
    after = _counts(session)
    return {
        "updates": UPDATES,
        "webgl_contexts": page.evaluate("qvdProbe.contexts()"),
        "before": before,
        "after": after,
    }


def _counts(session: Any) -> dict[str, float]:
    for _ in range(3):  # what one collection frees may hold more
        session.send("HeapProfiler.collectGarbage")
    found = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return {name: round(found[key] / (1e6 if name == "heap_mb" else 1), 2) for name, key in COUNTS.items()}
