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
    "request to answer": ("sent", "arrived"),
    "answer to drawing": ("arrived", "drawing"),
    "drawing to pixels": ("drawing", "end"),
    "all": ("first", "end"),
}


def stages(page: Any, control: Control, random: Random, repeats: int) -> dict[str, float]:
    """Medians in milliseconds of every stage; how many figures were drawn, seen or not, and bytes of the answer."""
    rows = []
    for _ in range(repeats):
        page.evaluate("qvdStages.take()")
        arm(page, control)
        use(page, control, random)
        seen = finished(page) | page.evaluate("qvdStages.take()")
        if all(seen.get(key) is not None for pair in STAGES.values() for key in pair):
            rows.append({name: seen[last] - seen[first] for name, (first, last) in STAGES.items()})
            rows[-1] |= {name: seen[name] for name in ("drawings", "bytes")}
    names = rows[0] if rows else ()
    return {name: round(statistics.median(row[name] for row in rows), 1) for name in names}
