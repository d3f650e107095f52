"""Tab "Temporal": how temporal features are distributed over the steps, and what two grids make of them.

They depend on the step only, so everything here is exact and needs neither a video nor calibration.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import gradio as gr

from qvd_core.formats import ACTIVATION_BITS, HTDQ
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import Recipe
from ui import panels
from ui.errors import shown
from ui.live_view import LiveView, beside, figure_slot, words_slot
from ui.naming import named
from ui.registry import Registry
from ui.temporal_answers import FORMS, MOST_STEPS, method_of, similarities, temporal

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

DEFAULT_STEPS = CATALOG["animatediff-mini"].steps
ABOUT = (
    "Temporal features tell the layers which denoising step it is. A few of their values are far larger than all"
    " others, so a uniform grid that spans them rounds many others to zero, and steps begin to look alike. HTDQ, QVD's"
    " remedy, uses a logarithmic grid (HiDi-TQ), fine near zero and coarse far from it. Its relaxation coefficient α"
    " says how fine; the one with the least K is taken, which weighs the rounding error against how well steps can"
    " still be told apart (TDScore). The fewer the bits, the more it matters: try 4."
)


def temporal_tab(registry: Registry, model_name: gr.State, recipe: gr.State, tab: gr.Tab) -> None:
    """Build the tab inside `tab`; it follows the model, and its controls follow the recipe, also before it opens."""
    gr.HTML(panels.note(ABOUT), elem_classes="qvd-flush")
    with gr.Row():
        steps = gr.Slider(
            2, MOST_STEPS, DEFAULT_STEPS, step=1, label="Denoising steps", min_width=240, elem_id="temporal-steps"
        )
        bits = gr.Slider(
            ACTIVATION_BITS[0],
            ACTIVATION_BITS[-1],
            8,
            step=1,
            label="Bits of both grids",
            min_width=240,
            elem_id="temporal-bits",
        )
    with gr.Row():
        form = gr.Dropdown(FORMS, value="H1", label="HiDi-TQ", min_width=240, elem_id="temporal-form")
        search = gr.Checkbox(True, label="Search α for the least K", elem_classes="qvd-wide", elem_id="temporal-search")
        coefficient = gr.Slider(
            -2, 6, 0, step=0.05, label="α, if not searched (log₂)", min_width=240, elem_id="temporal-coefficient"
        )
    with gr.Row():
        weight = gr.Slider(
            0, 10, 1, step=0.1, label="λ: weight of TDScore in K", min_width=240, elem_id="temporal-weight"
        )
        radius = gr.Slider(
            1, 8, 2, step=1, label="Radius of TDScore, in steps", min_width=240, elem_id="temporal-radius"
        )
        sign = gr.Checkbox(
            True, label="The sign takes one of the bits", elem_classes="qvd-wide", elem_id="temporal-sign"
        )
    controls = {
        "steps": steps,
        "bits": bits,
        "form": form,
        "search": search,
        "coefficient": coefficient,
        "weight": weight,
        "radius": radius,
        "sign": sign,
    }
    slots = (
        words_slot("sentence")
        + figure_slot("distribution")
        + words_slot("cards")
        + words_slot("htdq")
        + beside(figure_slot("staircases", 320), figure_slot("codes", 320))
        + figure_slot("search", 320)
        + words_slot("scores")
    )
    view = LiveView(registry, "temporal-view", slots, temporal)
    slots = beside(figure_slot("full", 300), figure_slot("uniform", 300), figure_slot("logarithmic", 300))
    alike = LiveView(registry, "similarity-view", slots + words_slot("source"), similarities)
    use = gr.Button("Use this HTDQ in the recipe", size="sm", elem_id="temporal-use")

    @shown
    def follow_model(name: str) -> Any:
        return min(registry.model(name).spec.steps, MOST_STEPS) if name else gr.skip()

    @shown
    def follow_recipe(name: str, current: Recipe) -> list[Any]:
        # Waits for a model that is loading: who opens the page by a link comes before it is there.
        width = _recipe_bits(registry.model(name), current) if name else gr.skip()
        method = current.temporal
        if not isinstance(method, HTDQ):
            return [width, *[gr.skip()] * 6]
        return [
            width,
            "port" if method.port else method.form,
            method.coefficient is None,
            gr.skip() if method.coefficient is None else math.log2(method.coefficient),
            method.discriminability_weight,
            method.radius,
            method.sign_inside,
        ]

    @shown
    def use_in_recipe(current: Recipe, *values: Any) -> Recipe:
        method = method_of(dict(zip(controls, values, strict=True)))
        if isinstance(current.temporal, HTDQ):
            method = dataclasses.replace(method, centred=current.temporal.centred)
        return named(dataclasses.replace(current, temporal=method))

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    model_name.change(follow_model, model_name, steps, **quiet)
    followers = [bits, form, search, coefficient, weight, radius, sign]
    gr.on([model_name.change, recipe.change], follow_recipe, [model_name, recipe], followers, **quiet)
    use.click(use_in_recipe, [recipe, *controls.values()], recipe, show_progress="hidden", api_visibility="private")
    for one in (view, alike):
        one.follow(model_name, recipe, controls, tab.select)


def _recipe_bits(model: VideoModel, recipe: Recipe) -> int:
    """What the recipe gives temporal features; 8 where it leaves them in floating point."""
    sites = [site for site in model.sites if site.role == "temporal_features"]
    form = recipe.formats(sites[0].name, sites[0].role)[1] if sites else None
    return 8 if form is None else form.bits
