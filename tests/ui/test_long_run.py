"""A button for long work: progress, result, Cancel, and a usable page whatever happens."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from qvd_core.errors import GenerationError
from tests.ui.pages import REQUEST, handler
from ui.comparison_run import Progress
from ui.long_run import long_run
from ui.running import Runs


class Page:
    """A long run, and what its components hold after each update."""

    def __init__(self, job: Any) -> None:
        self.runs = Runs()
        with gr.Blocks() as self.demo:
            self.result = gr.Textbox()
            self.status = long_run(
                self.runs, "work", "Work", [gr.State(0)], job, [self.result], lambda found: [found.upper()]
            )
        by_id = {getattr(block, "elem_id", None): block for block in self.demo.blocks.values()}
        self.start, self.stop = by_id["work-start"], by_id["work-cancel"]

    def press(self) -> tuple[Any, ...]:
        values, status, start, stop = handler(self.demo, "press")(REQUEST, 3)
        assert "Waiting" in status
        assert (start["interactive"], stop["interactive"]) == (False, True)
        return tuple(values)

    def updates(self, values: tuple[Any, ...]) -> Any:
        return handler(self.demo, "run")(values, REQUEST)

    def cancel(self) -> None:
        handler(self.demo, "cancel")(REQUEST)

    def is_idle(self, update: dict[Any, Any]) -> bool:
        return update[self.start]["interactive"] and not update[self.stop]["interactive"]


def counting(report: Any, number: int) -> str:
    for i in range(number):
        report(Progress(f"part {i} <b>", i / number))
    return "done"


def test_progress_then_the_result() -> None:
    page = Page(counting)
    updates = list(page.updates(page.press()))
    bars = [update[page.status] for update in updates[:-1]]
    assert ["part 0 &lt;b&gt;" in bars[0], 'aria-valuenow="67"' in bars[2]] == [True, True]
    assert updates[-1][page.result] == "DONE"
    assert updates[-1][page.status] == ""
    assert page.is_idle(updates[-1])


def test_cancel_stops_it_and_keeps_what_was_shown() -> None:
    page = Page(lambda report, number: counting(report, 10**9))
    updates = page.updates(page.press())
    next(updates)
    page.cancel()
    *_, last = updates
    assert "Cancelled" in last[page.status]
    assert page.is_idle(last)
    assert page.result not in last


def test_cancel_counts_while_the_run_waits_for_its_turn() -> None:
    page = Page(counting)
    values = page.press()
    page.cancel()
    (last,) = page.updates(values)
    assert "Cancelled" in last[page.status]


def test_cancel_reaches_no_other_run_of_the_visitor() -> None:
    page = Page(counting)
    values = page.press()
    page.runs.expect("visitor/other")
    page.runs.cancel("visitor/other")
    assert list(page.updates(values))[-1][page.result] == "DONE"


@pytest.mark.parametrize(
    ("error", "message"),
    [(GenerationError("Too <many> steps."), "Too &lt;many&gt; steps."), (KeyError("x"), "Unexpected KeyError: 'x'")],
)
def test_a_failure_is_told_and_leaves_the_page_usable(error: Exception, message: str) -> None:
    def failing(report: Any, number: int) -> str:
        raise error

    page = Page(failing)
    updates = page.updates(page.press())
    assert page.is_idle(next(updates))
    with pytest.raises(gr.Error) as raised:
        next(updates)
    assert str(raised.value.message) == message
