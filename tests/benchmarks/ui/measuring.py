"""Times from a control's change to changed pixels, in a page that runs `probe.js`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.benchmarks.ui.acting import LISTENED, slider_place, use
from tests.benchmarks.ui.controls import Control

WARM_UP = 4
TRIES = 10
QUIET = 150  # ms without any change before the next sample
QUIET_AFTER_DRAG = 600
PATIENCE = 20_000


def arm(page: Any, control: Control) -> None:
    event, inner = LISTENED[control.kind]
    target = inner if control.kind == "dropdown" else f"#{control.elem_id} {inner}"
    page.evaluate("what => qvdProbe.arm(what)", {"target": target, "event": event, "view": control.view})


def finished(page: Any, quiet: int = QUIET) -> dict[str, Any]:
    return page.evaluate("how => qvdProbe.finished(how)", {"quiet": quiet, "patience": PATIENCE})


def change(page: Any, control: Control, random: Random) -> dict[str, Any]:
    """Use the control until something that can be seen changes, mostly once.

    Returns when the change began ("first") and was on the screen ("end"), and how many "figures" changed.
    """
    for _ in range(TRIES):
        arm(page, control)
        use(page, control, random)
        seen = finished(page)
        if seen["end"] is not None:
            return seen
    raise RuntimeError(f"{control.elem_id} was used {TRIES} times and nothing changed.")


def warm_up(page: Any, control: Control, random: Random) -> None:
    for _ in range(WARM_UP):
        change(page, control, random)


def drag(page: Any, control: Control, random: Random) -> tuple[float, bool]:
    """Drag the slider across; milliseconds from its last change to the last new pixels, and whether these are right.

    Right is what the same value shows when it is chosen by itself.
    """
    low, high = page.locator(f"#{control.elem_id} input[type=range]").evaluate("n => [n.min, n.max].map(Number)")
    ends = [low + random.uniform(0, 0.2) * (high - low), high - random.uniform(0, 0.2) * (high - low)]
    random.shuffle(ends)
    start, stop = (slider_place(page, control, value) for value in ends)
    arm(page, control)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*stop, steps=30)
    page.mouse.up()
    seen = finished(page, QUIET_AFTER_DRAG)
    if seen["last"] is None:
        raise RuntimeError(f"{control.elem_id} was dragged and did not notice.")
    dragged, value = _content(page, control), _value(page, control)
    for place in (start, stop):
        arm(page, control)
        page.mouse.click(*place)
        finished(page)
    while (off := value - _value(page, control)) != 0:  # a thumb that is dragged may end beside the pointer
        arm(page, control)
        page.keyboard.press("ArrowRight" if off > 0 else "ArrowLeft")
        finished(page)
    return max((seen["end"] or 0) - seen["last"], 0.0), dragged == _content(page, control)


def milliseconds(seen: dict[str, Any]) -> float:
    return float(seen["end"] - seen["first"])


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile (nearest rank)."""
    rank = math.ceil(0.95 * len(times)) - 1
    return {"median_ms": round(statistics.median(times), 1), "p95_ms": round(sorted(times)[rank], 1)}


def _content(page: Any, control: Control) -> str:
    return str(page.evaluate("view => qvdProbe.content(view)", control.view))


def _value(page: Any, control: Control) -> float:
    return float(page.locator(f"#{control.elem_id} input[type=range]").input_value())
