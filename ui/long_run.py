"""A button that starts long work, with progress and a way to stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from qvd_core.errors import Cancelled, QvdError
from ui import panels
from ui.comparison_run import Progress
from ui.errors import shown
from ui.running import Runs

Report = Callable[[Progress], None]


def long_run(
    runs: Runs,
    name: str,
    label: str,
    inputs: list[Any],
    job: Callable[..., Any],
    outputs: list[Any],
    finish: Callable[[Any], list[Any]],
) -> gr.HTML:
    """Build the button, its Cancel and a line of status.

    Runs of all sessions that touch a model wait for each other, so each has the machine for itself.

    Args:
        name: of the run, unique on the page; ids begin with it.
        inputs: components and states, as they are when the button is pressed.
        job: called as job(report, *inputs) in a thread; `report` raises `Cancelled` once it shall stop.
        finish: from what `job` returned to the values of `outputs`.

    Returns:
        The status line.
    """
    with gr.Row(equal_height=True):
        start = gr.Button(label, variant="primary", scale=3, min_width=200, elem_id=f"{name}-start")
        stop = gr.Button("Cancel", variant="stop", scale=1, min_width=100, interactive=False, elem_id=f"{name}-cancel")
    status = gr.HTML(elem_id=f"{name}-status", elem_classes="qvd-flush")
    wanted = gr.State(None)
    busy = [gr.update(interactive=False), gr.update(interactive=True)]
    idle = [gr.update(interactive=True), gr.update(interactive=False)]

    def run_name(request: gr.Request) -> str:
        return f"{request.session_hash}/{name}"

    def press(request: gr.Request, *values: Any) -> list[Any]:
        runs.expect(run_name(request))
        return [values, panels.progress_bar("Waiting: the server runs one model at a time.", 0), *busy]

    @shown
    def run(values: tuple[Any, ...], request: gr.Request) -> Iterator[dict[Any, Any]]:
        try:
            for update in runs.stream(run_name(request), lambda report: job(report, *values)):
                if isinstance(update, Progress):
                    yield {status: panels.progress_bar(update.text, update.share)}
                else:
                    found = dict(zip(outputs, finish(update), strict=True))
                    yield {status: "", start: idle[0], stop: idle[1], **found}
        except Exception as error:
            # The page must be usable again before any message.
            text = "Cancelled." if isinstance(error, Cancelled) else "The run failed; the message says why."
            yield {status: panels.note(text), start: idle[0], stop: idle[1]}
            if isinstance(error, Cancelled):
                return
            if isinstance(error, QvdError):
                raise
            raise QvdError(f"Unexpected {type(error).__name__}: {error}") from error

    def cancel(request: gr.Request) -> None:
        runs.cancel(run_name(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    start.click(press, inputs, [wanted, status, start, stop], queue=False, **quiet).then(
        run,
        wanted,
        [status, start, stop, *outputs],
        concurrency_id="model",
        concurrency_limit=1,
        trigger_mode="multiple",
        **quiet,
    )
    stop.click(cancel, queue=False, api_visibility="private")
    return status
