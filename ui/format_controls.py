"""Controls of number formats: weights and layer inputs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import gradio as gr

from qvd_core.formats import ACTIVATION_BITS, WEIGHT_BITS, ActivationFormat, WeightFormat
from qvd_core.recipe import Recipe
from ui import panels
from ui.controls import Values, heading, remark
from ui.method_words import RANGE_WORDS, RANGES, SEARCHES

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

GRIDS = ["symmetric", "affine"]


class WeightControls:
    """The format of all weights."""

    def __init__(self) -> None:
        heading("Weights", "One scale per output channel, from its smallest and largest weight.")
        self.on = gr.Checkbox(True, label="Quantize weights")
        with gr.Column() as self.details:
            self.bits = gr.Slider(
                WEIGHT_BITS[0], WEIGHT_BITS[-1], 8, step=1, label="Weight bits", elem_id="weight-bits"
            )
            self.grid = gr.Radio(GRIDS, value="symmetric", label="Weight grid", elem_id="weight-grid")
        self.inputs: list[Any] = [self.on, self.bits, self.grid]
        self.outputs: list[Any] = [*self.inputs, self.details]

    def read(self, values: Values, recipe: Recipe) -> Recipe:
        weights = WeightFormat(int(values[self.bits]), values[self.grid] == "symmetric") if values[self.on] else None
        return dataclasses.replace(recipe, weights=weights)

    def show(self, recipe: Recipe) -> dict[Any, Any]:
        weights = recipe.weights
        shown = {self.on: weights is not None, self.details: gr.update(visible=weights is not None)}
        if weights is not None:
            shown |= {self.bits: weights.bits, self.grid: GRIDS[not weights.symmetric]}
        return shown

    def explain(self, recipe: Recipe, model: VideoModel | None) -> dict[Any, Any]:
        return {}


class InputControls:
    """The format of all layer inputs."""

    def __init__(self) -> None:
        heading("Layer inputs", "Rounded as they arrive, before every linear layer and convolution.")
        self.on = gr.Checkbox(True, label="Quantize inputs")
        with gr.Column() as self.details:
            self.bits = gr.Slider(
                ACTIVATION_BITS[0], ACTIVATION_BITS[-1], 8, step=1, label="Input bits", elem_id="input-bits"
            )
            self.range = gr.Radio(RANGES, value="static_per_tensor", label="Range", elem_id="input-range")
            self.words = remark()
            self.search = gr.Radio(SEARCHES, value="min_max", label="Ends of the range", elem_id="input-search")
            self.grid = gr.Radio(GRIDS, value="affine", label="Input grid", elem_id="input-grid")
        self.inputs: list[Any] = [self.on, self.bits, self.range, self.search, self.grid]
        self.outputs: list[Any] = [*self.inputs, self.details, self.words]

    def read(self, values: Values, recipe: Recipe) -> Recipe:
        dynamic = values[self.range] == "dynamic_per_token"
        activations = ActivationFormat(
            int(values[self.bits]),
            values[self.range],
            values[self.grid] == "symmetric",
            "min_max" if dynamic else values[self.search],  # a token's range is found, not searched
        )
        return dataclasses.replace(recipe, activations=activations if values[self.on] else None)

    def show(self, recipe: Recipe) -> dict[Any, Any]:
        form = recipe.activations
        shown: dict[Any, Any] = {self.on: form is not None, self.details: gr.update(visible=form is not None)}
        if form is None:
            return shown
        static = form.range != "dynamic_per_token"
        return shown | {
            self.bits: form.bits,
            self.range: form.range,
            self.search: gr.update(visible=True, value=form.search) if static else gr.update(visible=False),
            self.grid: GRIDS[not form.symmetric],
        }

    def explain(self, recipe: Recipe, model: VideoModel | None) -> dict[Any, Any]:
        return {} if recipe.activations is None else {self.words: panels.note(RANGE_WORDS[recipe.activations.range])}
