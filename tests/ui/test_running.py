"""Runs behind the page: what they report arrives in order, cancelling reaches the right one, nothing lingers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from qvd_core.errors import Cancelled
from ui.running import Runs


def counting(limit: int) -> Callable[[Callable[[int], None]], str]:
    def job(report: Callable[[int], None]) -> str:
        for number in range(limit):
            report(number)
        return "done"

    return job


def test_reports_come_in_order_and_the_result_last() -> None:
    assert list(Runs().stream("session", counting(3))) == [0, 1, 2, "done"]


def test_cancel_stops_at_the_next_report() -> None:
    runs, gate = Runs(), threading.Event()

    def job(report: Callable[[int], None]) -> None:
        report(1)
        gate.wait(5)
        report(2)

    stream = runs.stream("mine", job)
    assert next(stream) == 1
    runs.cancel("another")
    runs.cancel("mine")
    gate.set()
    with pytest.raises(Cancelled):
        next(stream)


def test_a_cancel_while_waiting_for_a_turn_counts() -> None:
    runs = Runs()
    runs.expect("session")
    runs.cancel("session")
    with pytest.raises(Cancelled):
        list(runs.stream("session", counting(3)))
    assert list(runs.stream("session", counting(1))) == [0, "done"]


def test_what_the_job_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(Runs().stream("session", lambda report: 1 // 0))


def test_a_consumer_that_goes_away_ends_the_job() -> None:
    ended = threading.Event()

    def job(report: Callable[[int], None]) -> None:
        try:
            while True:
                report(1)
        finally:
            ended.set()

    stream = Runs().stream("session", job)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert ended.wait(5)
