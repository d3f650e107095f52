"""Figures and words that follow sliders at once: the page asks one Python function and redraws in place.

A view is one `gr.HTML` with slots for figures and for words. Moving a control does not go through Gradio's
queue: the page calls the view's server function with what all controls say, and `Plotly.react` updates the
figures, which keeps zoom and leaks nothing (`gr.Plot` builds a figure anew at every update). One question is
under way at a time and the newest waits, so the last value is always the one shown. The model and the recipe
come from the page's state through the queue.

Server functions can be called by anybody with anything: the model must be one that is loaded here, the recipe
and all choices are checked, and nothing is written.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import gradio as gr
from threadpoolctl import ThreadpoolController

from qvd_core.errors import QvdError, RecipeError
from qvd_core.recipe import Recipe
from ui.errors import shown
from ui.registry import Registry, Shelf

if TYPE_CHECKING:
    from analysis.drawing import Drawing
    from qvd_core.models.loader import VideoModel

ASSETS = Path(__file__).parents[1] / "assets" / "ui"
STYLE = ASSETS / "live_view.css"
JS_ON_LOAD = (ASSETS / "live_view.js").read_text(encoding="utf-8")


class Table(Protocol):
    """What every table of `analysis` offers: its columns, for a file."""

    def columns(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Shown:
    """A figure in a slot: how it is drawn, and the table it shows."""

    drawing: Drawing
    table: Table


Answer = Callable[["VideoModel", Recipe, dict[str, Any]], Mapping[str, Shown | str]]
"""From the model, the recipe and what the controls say to what is in the slots: figures, or HTML."""


def figure_slot(name: str, height: int = 360) -> str:
    """The place of a figure, with its downloads."""
    buttons = "".join(f'<button type="button" data-format="{form}">{form.upper()}</button>' for form in DOWNLOADS)
    return (
        f'<div class="qvd-slot qvd-figure" data-slot="{name}" data-kind="figure" data-state="empty"'
        f' style="--figure-height: {height}px"><p class="qvd-figure-message"></p>'
        f'<div class="qvd-figure-plot" role="img"></div>'
        f'<div class="qvd-figure-files" role="group" aria-label="Download this figure">{buttons}</div></div>'
    )


def words_slot(name: str) -> str:
    """The place of a sentence or of other HTML."""
    return f'<div class="qvd-slot" data-slot="{name}" data-kind="words" aria-live="polite"></div>'


def beside(*slots: str) -> str:
    """Slots side by side where there is room."""
    return f'<div class="qvd-beside">{"".join(slots)}</div>'


DOWNLOADS = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}


class LiveView:
    """The component and what ties it to controls.

    Args:
        name: its `elem_id`.
        slots: HTML made of `figure_slot`, `words_slot` and `beside`.
        answer: what is in the slots. It may raise `QvdError`, which the page then shows in place of them. None
            for a view that only ever shows what `showing` makes of results.
        shown_later: `component.render()` says where on the page it goes.
    """

    def __init__(
        self, registry: Registry, name: str, slots: str, answer: Answer | None = None, shown_later: bool = False
    ):
        self.name, self._registry, self._answer = name, registry, answer
        self._results: Shelf[Mapping[str, Shown | str]] = Shelf(16)
        placeholder = "" if answer is None else "Loading the model…"

        def answer_live(question: dict[str, Any]) -> str:
            return json.dumps(self.reply(question), allow_nan=False)  # else FastAPI looks at every number, for 10 ms

        def download_live(question: dict[str, Any]) -> dict[str, str]:
            return self.download(question)

        self.component = gr.HTML(
            html_template=(
                f'<div class="qvd-view" data-name="{name}" data-state="empty" data-script="{_script_path()}">'
                f'<p class="qvd-view-message" role="status">{escape(placeholder)}</p>'
                f'<div class="qvd-view-slots">{slots}</div></div>'
            ),
            js_on_load=JS_ON_LOAD,
            server_functions=[answer_live, download_live],
            apply_default_css=False,
            elem_id=name,
            elem_classes="qvd-flush",
            render=not shown_later,
        )

    def follow(self, model_name: gr.State, recipe: gr.State, controls: Mapping[str, Any], *also: Any) -> None:
        """Ask anew whenever the model, the recipe or one of `controls` changes, or an event of `also` fires."""
        names, components = list(controls), list(controls.values())

        @shown
        def context(model: str, current: Recipe, *values: Any) -> Any:
            if not model:
                return gr.skip()
            self._registry.model(model)  # waits for one that is loading
            return question(model, current, dict(zip(names, values, strict=True)))

        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        gr.on(
            [model_name.change, recipe.change, *also],
            context,
            [model_name, recipe, *components],
            self.component,
            **quiet,
        )
        for name, control in controls.items():
            # In the browser alone: no queue, and the view asks the server itself.
            control.change(
                None, [control], None, js=f"value => window.qvdViews?.['{self.name}']?.choose('{name}', value)"
            )

    def reply(self, asked: Any) -> dict[str, Any]:
        """What the page shows: {"slots": {name: payload or HTML}}, or {"error": message}."""
        try:
            return {"slots": _payloads(self._found(asked))}
        except QvdError as error:
            return {"error": str(error)}

    def showing(self, found: Mapping[str, Shown | str]) -> dict[str, Any]:
        """The component's value that shows a result; its files can be had as long as the server remembers it."""
        token = secrets.token_urlsafe(16)  # nobody else can name it
        self._results.put(token, found)
        return {"slots": _payloads(found), "token": token}

    def download(self, asked: Any) -> dict[str, str]:
        """One figure, or its table, as a file: {"name", "type", "data" in base64}, or {"error": message}."""
        try:
            found = self._found(asked)
            slot, form = asked.get("slot"), asked.get("format")
            shown = found.get(slot) if isinstance(slot, str) else None
            if not isinstance(shown, Shown) or not isinstance(form, str) or form not in DOWNLOADS:
                raise RecipeError(f"There is no {form!r} file of {slot!r}.")
        except QvdError as error:
            return {"error": str(error)}
        if form == "csv":
            from analysis.export import as_csv

            content = as_csv(shown.table.columns()).encode()
        else:
            from analysis.paper import as_file

            content = as_file(shown.drawing, form)
        return {
            "name": f"{self.name}-{slot}.{form}",
            "type": DOWNLOADS[form],
            "data": base64.b64encode(content).decode("ascii"),
        }

    def _found(self, asked: Any) -> Mapping[str, Shown | str]:
        if isinstance(asked, dict) and "token" in asked:
            kept = self._results.peek(str(asked["token"]))
            if kept is None:
                raise QvdError("The server no longer has this result; run it again.")
            return kept
        if self._answer is None or not isinstance(asked, dict) or not isinstance(asked.get("choices"), dict):
            raise RecipeError("This is no question of the page.")
        model = self._registry.loaded(str(asked.get("model")))
        if model is None:
            raise QvdError("The model is not loaded; choose it in the sidebar.")
        current = Recipe.from_query(str(asked.get("recipe")))
        with _openmp().limit(limits=1):
            return self._answer(model, self._registry.checked(model.spec.name, current), asked["choices"])


@functools.cache
def _openmp() -> ThreadpoolController:
    """How many threads OpenMP gives the calling thread, and no other.

    An answer is many short operations. Waking more threads for each takes longer than it saves, many times longer
    where the cores are a virtual machine's. Made once torch is there, whose OpenMP it looks for.
    """
    return ThreadpoolController().select(user_api="openmp")


def _payloads(found: Mapping[str, Shown | str]) -> dict[str, Any]:
    from analysis.screen import payload

    return {
        slot: payload(content.drawing) if isinstance(content, Shown) else content for slot, content in found.items()
    }


def question(model: str, recipe: Recipe, choices: Mapping[str, Any]) -> dict[str, Any]:
    """What a view asks its server function."""
    return {"model": model, "recipe": recipe.to_query(), "choices": dict(choices)}


def finding(text: str) -> str:
    """What a figure shows, as a paragraph beside it."""
    return f'<p class="qvd-finding">{escape(text)}</p>'


def whole_number(choices: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """The choice `name` as a whole number from `low` to `high`.

    Raises:
        RecipeError: it is none.
    """
    value = choices.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:  # of no and endless numbers
        raise RecipeError(f"{name} = {value!r} is no whole number.")
    if not low <= value <= high:
        raise RecipeError(f"{name} = {value!r} is out of range; choose {low} to {high}.")
    return int(value)


def one_of(choices: Mapping[str, Any], name: str, allowed: Any) -> Any:
    """The choice `name`, which must be one of `allowed`.

    Raises:
        RecipeError: it is none of them.
    """
    value = choices.get(name)
    if not isinstance(value, str) or value not in allowed:
        raise RecipeError(f"{name} = {value!r} is not one of {', '.join(map(str, allowed))}.")
    return value


@functools.cache
def _script_path() -> str:
    """Where the page finds plotly.js, relative to its root; allows that one file to be served.

    It is the installed package's own, so it always fits the figures.
    """
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    gr.set_static_paths([script])
    return "/gradio_api/file=" + quote(script.as_posix())
