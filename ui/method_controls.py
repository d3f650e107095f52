"""Controls of methods: what is done to temporal features, and to channels."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import gradio as gr

from analysis.methods import SCRI_SITES
from qvd_core.formats import HTDQ, ChannelBalancing, ShiftAndScale, Tabulated, TemporalBlock
from qvd_core.recipe import Channels, Recipe, Temporal
from ui import panels
from ui.controls import Values, heading, remark
from ui.method_words import (
    CHANNELS,
    TEMPORAL,
    channel_choice,
    channel_words,
    temporal_choice,
    temporal_words,
)

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

FORMS = [
    ("H1, multiplies the logarithm", "H1"),
    ("H2, added inside it", "H2"),
    ("H3, scales the range", "H3"),
]
PARTS = [("shift and scale", "both"), ("shift", "shift"), ("scale", "scale")]


class TemporalControls:
    """What is done to the time path."""

    def __init__(self) -> None:
        heading("Temporal features", "What tells the network at which denoising step it is.")
        self.choice = gr.Radio(
            TEMPORAL, value="none", label="Temporal features", show_label=False, elem_id="temporal-method"
        )
        self.words = remark()
        with gr.Accordion("HTDQ in detail", open=False, visible=False) as self.details:
            self.port = gr.Checkbox(
                False,
                label="As in the public port",
                info="Coefficient 1, rounding at midpoints, the sign on top of the bits, no search.",
                elem_id="htdq-port",
            )
            with gr.Column() as self.own:
                self.form = gr.Radio(
                    FORMS,
                    value="H1",
                    label="Relaxation coefficient",
                    info="The paper's formula is not public; these are three readings of it.",
                    elem_id="htdq-form",
                )
                self.sign_inside = gr.Checkbox(True, label="The sign takes one of the bits", elem_id="htdq-sign")
                self.searched = gr.Checkbox(True, label="Search the coefficient", elem_id="htdq-searched")
                # No bounds here: a value out of them would make Gradio refuse every later change as well.
                self.coefficient = gr.Number(1, label="Coefficient", visible=False, elem_id="htdq-coefficient")
                with gr.Column() as self.search:
                    self.weight = gr.Number(
                        1,
                        label="Weight of distinctness",
                        info="The search weighs how distinct neighbouring steps stay against the rounding error.",
                        elem_id="htdq-weight",
                    )
                    self.radius = gr.Number(2, label="Neighbours on either side", precision=0, elem_id="htdq-radius")
                    self.centred = gr.Checkbox(
                        False, label="Compare steps without what all of them share", elem_id="htdq-centred"
                    )
        self.inputs: list[Any] = [self.choice, self.port, self.form, self.sign_inside, self.searched]
        self.inputs += [self.coefficient, self.weight, self.radius, self.centred]
        self.outputs: list[Any] = [*self.inputs, self.words, self.details, self.own, self.search]

    def read(self, values: Values, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, temporal=self._method(values, recipe.temporal))

    def _method(self, values: Values, current: Temporal | None) -> Temporal | None:
        if values[self.choice] != "htdq":
            return {"none": None, "temporal_block": TemporalBlock(), "tabulated": Tabulated()}[values[self.choice]]
        before = current if isinstance(current, HTDQ) else HTDQ()
        coefficient = None
        if not values[self.searched]:
            coefficient = _number(values[self.coefficient], before.coefficient or 1.0)
        return HTDQ(
            form=values[self.form],
            sign_inside=values[self.sign_inside],
            port=values[self.port],
            coefficient=coefficient,
            discriminability_weight=_number(values[self.weight], before.discriminability_weight),
            radius=int(_number(values[self.radius], before.radius)),
            centred=values[self.centred],
        )

    def show(self, recipe: Recipe) -> dict[Any, Any]:
        method = recipe.temporal
        shown: dict[Any, Any] = {
            self.choice: temporal_choice(recipe),
            self.details: gr.update(visible=isinstance(method, HTDQ)),
        }
        if not isinstance(method, HTDQ):
            return shown
        searched = method.coefficient is None
        return shown | {
            self.port: method.port,
            self.own: gr.update(visible=not method.port),
            self.form: method.form,
            self.sign_inside: method.sign_inside,
            self.searched: searched,
            self.coefficient: gr.update(visible=False)
            if searched
            else gr.update(visible=True, value=method.coefficient),
            self.search: gr.update(visible=searched),
            self.weight: method.discriminability_weight,
            self.radius: method.radius,
            self.centred: method.centred,
        }

    def explain(self, recipe: Recipe, model: VideoModel | None) -> dict[Any, Any]:
        return {self.words: panels.note(temporal_words(recipe, model))}


class ChannelControls:
    """The transformation of channels before anything is quantized, and whether concatenated ones are kept apart."""

    def __init__(self) -> None:
        heading("Channels", "An input's channels share one grid, though their ranges may differ widely.")
        self.choice = gr.Radio(CHANNELS, value="none", label="Channels", show_label=False, elem_id="channel-method")
        self.words = remark()
        self.parts = gr.Radio(PARTS, value="both", label="Transformation", visible=False, elem_id="channel-parts")
        self.sites = gr.Dropdown(
            [("all layers", "*")],
            value=["*"],
            label="At",
            info="Roles, layers, or patterns such as up_blocks.2.*",
            multiselect=True,
            allow_custom_value=True,
            visible=False,
            elem_id="channel-sites",
        )
        self.strength = gr.Slider(
            0,
            1,
            0.5,
            step=0.01,
            label="Strength",
            info="0 leaves all range to the inputs, 1 hands all of it to the weights.",
            visible=False,
            elem_id="channel-strength",
        )
        with gr.Accordion("Calibrated steps used", open=False, visible=False) as self.details:
            self.steps = gr.Radio(
                [("all steps", "all"), ("the noisiest step, as in the public port", "first")],
                value="all",
                show_label=False,
                elem_id="channel-steps",
            )
        self.split = gr.Checkbox(
            False,
            label="Split shortcuts",
            info="Where skipped channels are concatenated to others, each part has a grid, in inputs and weights.",
            elem_id="split-shortcuts",
        )
        self.inputs: list[Any] = [self.choice, self.parts, self.sites, self.strength, self.steps, self.split]
        self.outputs: list[Any] = [*self.inputs, self.words, self.details]

    def read(self, values: Values, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, channels=self._method(values), split_shortcuts=values[self.split])

    def _method(self, values: Values) -> Channels | None:
        choice, sites = values[self.choice], tuple(values[self.sites] or ())
        if choice == "none":
            return None
        if choice == "balancing":
            return ChannelBalancing(strength=float(values[self.strength]), sites=sites)
        parts = values[self.parts]
        return ShiftAndScale(
            shift=parts != "scale",
            scale=parts != "shift",
            sites=SCRI_SITES if choice == "scri" else sites,
            steps=values[self.steps],
        )

    def show(self, recipe: Recipe) -> dict[Any, Any]:
        method, choice = recipe.channels, channel_choice(recipe)
        moved = isinstance(method, ShiftAndScale)
        shown: dict[Any, Any] = {
            self.choice: choice,
            self.parts: gr.update(visible=moved),
            # SCRI has its place; what is chosen after it begins at all layers.
            self.sites: gr.update(visible=False, value=["*"]) if choice == "scri" else gr.update(visible=False),
            self.strength: gr.update(visible=choice == "balancing"),
            self.details: gr.update(visible=moved),
            self.split: recipe.split_shortcuts,
        }
        if method is not None and choice != "scri":
            shown[self.sites] = gr.update(visible=True, value=list(method.sites))
        if isinstance(method, ChannelBalancing):
            shown[self.strength] = gr.update(visible=True, value=method.strength)
        if isinstance(method, ShiftAndScale):
            parts = "both" if method.shift and method.scale else "shift" if method.shift else "scale"
            shown |= {self.parts: gr.update(visible=True, value=parts), self.steps: method.steps}
        return shown

    def explain(self, recipe: Recipe, model: VideoModel | None) -> dict[Any, Any]:
        return {self.words: panels.note(channel_words(recipe, model))}

    def offer(self, names: list[str]) -> dict[Any, Any]:
        """Updates that let `names`, roles and layers, be chosen."""
        return {self.sites: gr.update(choices=[("all layers", "*"), *names])}


def _number(typed: float | None, otherwise: float) -> float:
    """What was typed; an emptied box means that nothing changes."""
    return otherwise if typed is None else typed
