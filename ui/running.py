"""Long work behind a page: in a thread of its own, reporting as it goes, stopped when told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from qvd_core.errors import Cancelled

Event = TypeVar("Event")
Outcome = TypeVar("Outcome")


class Runs:
    """The runs of each session, so that its Cancel buttons reach them and nobody else's.

    A run is known by its session and a name of its own: "SESSION" or "SESSION/NAME".
    """

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}

    def expect(self, session: str) -> None:
        """A run of this session will start once its turn has come; cancelling counts from now on."""
        self._stops[session] = threading.Event()

    def cancel(self, session: str) -> None:
        """Ask the session's run to stop at its next report; nothing happens if there is none."""
        stop = self._stops.get(session)
        if stop is not None:
            stop.set()

    def cancel_all(self, session: str) -> None:
        """Ask every run of the session to stop."""
        for run in list(self._stops):
            if run.partition("/")[0] == session:
                self.cancel(run)

    def stream(self, session: str, job: Callable[[Callable[[Event], None]], Outcome]) -> Iterator[Event | Outcome]:
        """Run `job(report)` in a thread; yield all it reports and then what it returns.

        When the session cancels, or the consumer goes away, the next `report` raises `Cancelled` inside
        the job. Whatever the job raises is raised here.
        """
        stop = self._stops.setdefault(session, threading.Event())
        events: queue.Queue[tuple[str, Any]] = queue.Queue()

        def report(event: Event) -> None:
            if stop.is_set():
                raise Cancelled("Stopped.")
            events.put(("report", event))

        def work() -> None:
            try:
                events.put(("result", job(report)))
            except BaseException as error:  # handed over, and raised on the other side
                events.put(("error", error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while True:
                kind, value = events.get()
                if kind == "error":
                    raise value
                yield value
                if kind == "result":
                    return
        finally:
            stop.set()
            thread.join()
            if self._stops.get(session) is stop:
                del self._stops[session]
