"""A page with two live views that follow one slider, and no model behind them: quick to build and to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np

from analysis.drawing import Axis, Bars, Drawing, Heatmap
from analysis.export import Columns
from qvd_core.errors import RecipeError
from qvd_core.recipe import Recipe, get_recipe
from ui.live_view import LiveView, Shown, beside, figure_slot, finding, whole_number, words_slot
from ui.registry import Registry

BARS, MOST = 24, 60
REFUSED, BROKEN, SLOW, BARE = 51, 52, 53, 54
"""Numbers for which the answer refuses, has a bug, takes half a second, or leaves the second figure out."""


def heights(number: int) -> np.ndarray:
    return np.arange(1, BARS + 1, dtype=np.float32) + number


def bars(number: int) -> Shown:
    x = np.arange(BARS, dtype=np.float32)
    drawing = Drawing(
        Axis("bar", -1, BARS),
        Axis("height", 0, BARS + MOST + 1),
        (Bars(x, np.zeros(BARS), heights(number), 0.8, hover=tuple(f"bar {i}" for i in range(BARS))),),
        alt_text=f"Bars, version {number}",
        height=300,
    )
    return Shown(drawing, Columns({"bar": x, "height": heights(number)}))


def matrix(number: int) -> Shown:
    values = np.random.default_rng(number).uniform(size=(12, 12)).astype(np.float32)
    names = tuple(f"row {i}" for i in range(12))
    steps = np.arange(1, 13)
    drawing = Drawing(
        Axis("step", 0.5, 12.5, grid=False),
        Axis("row", grid=False),
        (Heatmap(steps, np.arange(12), values, "share", 0, 1, row="row", column="step", names=names),),
        alt_text=f"Matrix {number}",
        height=300,
    )
    return Shown(drawing, Columns({"share": values.ravel()}))


def answer(model: Any, recipe: Recipe, choices: dict[str, Any]) -> Mapping[str, Shown | str]:
    number = whole_number(choices, "number", 0, MOST)
    if number == REFUSED:
        raise RecipeError("This number is <b>not</b> offered.")
    if number == BROKEN:
        raise ZeroDivisionError("a secret of the server")
    if number == SLOW:
        time.sleep(0.5)
    second: Shown | str = "" if number == BARE else matrix(number)
    return {"sentence": finding(f"Number {number} <of> {model.spec.name}."), "bars": bars(number), "matrix": second}


class OneModel(Registry):
    """A server whose one model is a name and nothing else."""

    def __init__(self) -> None:
        super().__init__(any_model=False)

    def model(self, source: str) -> Any:
        return self.loaded(source)

    def loaded(self, source: str) -> Any:
        return SimpleNamespace(spec=SimpleNamespace(name="toy")) if source == "toy" else None

    def checked(self, source: str, recipe: Recipe) -> Recipe:
        return recipe


def tell(event: gr.EventData) -> str:
    return f"{event.slot} {event.x} {event.y}"


def build() -> gr.Blocks:
    registry = OneModel()
    slots = words_slot("sentence") + beside(figure_slot("bars", 300), figure_slot("matrix", 300))
    with gr.Blocks() as demo:
        model_name, recipe = gr.State(""), gr.State(get_recipe("minmax-w8a8"))
        number = gr.Slider(0, MOST, 0, step=1, elem_id="number")
        with gr.Tab("First"):
            first = LiveView(registry, "first", slots, answer)
            picked = gr.Textbox(label="picked", elem_id="picked")
            first.component.pick(tell, None, picked)
        with gr.Tab("Later") as later_tab:
            later = LiveView(registry, "later", slots, answer)
        with gr.Tab("Far") as far_tab:
            gr.HTML('<div style="height: 2000px"></div>')
            far = LiveView(registry, "far", slots, answer)
        for view, also in ((first, ()), (later, (later_tab.select,)), (far, (far_tab.select,))):
            view.follow(model_name, recipe, {"number": number}, *also)
        demo.load(lambda: "toy", None, model_name)
    return demo
