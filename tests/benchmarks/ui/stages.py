"""Where the time of an update goes: medians of its stages, from hooks in the page (`stages.js`)."""

from __future__ import annotations

import statistics
from pathlib import Path
from random import Random
from typing import Any

from tests.benchmarks.ui.acting import use
from tests.benchmarks.ui.controls import Control
from tests.benchmarks.ui.measuring import arm, finished

HOOKS = Path(__file__).with_name("stages.js")
STAGES = {
    "event to request": ("first", "sent"),
    "request to result": ("sent", "arrived"),
    "result to drawing": ("arrived", "drawing"),
    "drawing": ("drawing", "drawn"),
    "drawing to pixels": ("drawn", "end"),
    "all": ("first", "end"),
}


def stages(page: Any, control: Control, random: Random, repeats: int) -> dict[str, float]:
    """Medians in milliseconds of every stage, of the handler and of all JSON work after the result came."""
    rows = []
    for _ in range(repeats):
        page.evaluate("qvdStages.take()")
        arm(page, control)
        use(page, control, random)
        seen = finished(page)
        seen |= page.evaluate("qvdStages.take()")
        if all(key in seen for pair in STAGES.values() for key in pair):
            rows.append({name: seen[last] - seen[first] for name, (first, last) in STAGES.items()})
            rows[-1] |= {name: seen[name] for name in ("handler", "json", "bytes") if name in seen}
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in names}
