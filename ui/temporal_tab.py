"""Tab "Temporal": how temporal features are distributed over the steps, and what a uniform grid leaves of them.

They depend on the step only, so everything here is exact and needs neither a video nor calibration.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gradio as gr

from analysis.methods import unlike_the_figure
from qvd_core.errors import CalibrationError
from qvd_core.formats import ACTIVATION_BITS, ActivationFormat
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import Recipe
from ui import panels
from ui.errors import shown
from ui.figure_panel import figure_panel, figure_payload, finding
from ui.registry import Registry

if TYPE_CHECKING:
    from analysis.temporal import Moments, TemporalTable
    from qvd_core.models.loader import VideoModel

MOST_STEPS = 100
DEFAULT_STEPS = CATALOG["animatediff-mini"].steps


def temporal_tab(registry: Registry, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab; it follows the model, and its bits follow the recipe."""
    notice = gr.HTML(panels.note("Loading the model…"), elem_id="temporal-notice")
    with gr.Column(visible=False) as body:
        with gr.Row():
            steps = gr.Slider(
                2, MOST_STEPS, DEFAULT_STEPS, step=1, label="Denoising steps", min_width=220, elem_id="temporal-steps"
            )
            bits = gr.Slider(
                ACTIVATION_BITS[0],
                ACTIVATION_BITS[-1],
                8,
                step=1,
                label="Bits of a uniform grid",
                min_width=220,
                elem_id="temporal-bits",
            )
        sentence = gr.HTML(elem_id="temporal-sentence")
        distribution = figure_panel(elem_id="temporal-distribution")
        cards = gr.HTML(elem_id="temporal-cards")
        with gr.Row():
            with gr.Column(min_width=300):
                before = figure_panel(elem_id="temporal-before")
            with gr.Column(min_width=300):
                after = figure_panel(elem_id="temporal-after")
        gr.HTML(
            panels.note(
                "Temporal features are the inputs of every time_emb_proj (QVD, arXiv 2407.11585, section 4.1): SiLU of"
                " the time embedding, one per denoising step, the same in every layer, for every prompt and seed. They"
                " are enumerated exactly, without sampling. The grid is affine and spans all steps, as a static"
                " quantizer's does."
            )
        )
    results = [notice, body, distribution, cards, sentence, before, after]

    @shown
    def draw(name: str, current: Recipe, count: float, width: float) -> list[Any]:
        if not name:
            return [gr.skip()] * len(results)
        return _results(registry.model(name), current, int(count), int(width))

    @shown
    def follow_model(name: str, current: Recipe) -> list[Any]:
        if not name:
            return [gr.skip()] * (2 + len(results))
        model = registry.model(name)
        count, width = min(model.spec.steps, MOST_STEPS), _recipe_bits(model, current)
        return [count, width, *_results(model, current, count, width)]

    @shown
    def follow_recipe(name: str, current: Recipe, count: float) -> list[Any]:
        if not name:
            return [gr.skip()] * (1 + len(results))
        model = registry.model(name)
        width = _recipe_bits(model, current)
        return [width, *_results(model, current, int(count), width)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    model_name.change(follow_model, [model_name, recipe], [steps, bits, *results], **quiet)
    recipe.change(follow_recipe, [model_name, recipe, steps], [bits, *results], **quiet)
    gr.on([steps.change, bits.change], draw, [model_name, recipe, steps, bits], results, **quiet)


def _recipe_bits(model: VideoModel, recipe: Recipe) -> int:
    """What the recipe gives temporal features; 8 where it leaves them in floating point."""
    sites = [site for site in model.sites if site.role == "temporal_features"]
    form = recipe.formats(sites[0].name, sites[0].role)[1] if sites else None
    return 8 if form is None else form.bits


def _results(model: VideoModel, recipe: Recipe, steps: int, bits: int) -> list[Any]:
    """Notice, whether there is anything to show, and all there is."""
    from analysis.figures import feature_distribution, step_similarity
    from analysis.temporal import in_words, moments, temporal_table
    from qvd_core.calibration.temporal_features import temporal_features

    try:
        table = temporal_table(temporal_features(model, steps), bits)
    except CalibrationError as error:
        said = gr.update(value=panels.note(str(error)), visible=True)
        return [said, gr.update(visible=False), None, "", "", None, None]
    lowest = float(min(table.similarity.min(), table.rounded_similarity.min()))
    return [
        gr.update(visible=False),
        gr.update(visible=True),
        figure_payload(feature_distribution(table)),
        _cards(moments(table.values), table),
        finding(f"{in_words(table)} {_caveat(model, recipe, bits)}".strip()),
        figure_payload(step_similarity(table.similarity, "Full precision", lowest)),
        figure_payload(step_similarity(table.rounded_similarity, f"{bits}-bit uniform grid", lowest)),
    ]


def _caveat(model: VideoModel, recipe: Recipe, bits: int) -> str:
    """In what the recipe treats temporal features otherwise than drawn."""
    site = next(site for site in model.sites if site.role == "temporal_features")
    return unlike_the_figure(model, recipe, site, ActivationFormat(bits))


def _cards(shape: Moments, table: TemporalTable) -> str:
    return panels.cards(
        [
            ("Skewness", _number(shape.skewness), "0 if symmetric; positive: the tail is on the right"),
            ("Excess kurtosis", _number(shape.excess_kurtosis), "0 for a normal distribution; higher: heavier tails"),
            ("Largest over median", f"{_number(shape.largest_over_median)}×", "of the magnitudes"),
            ("Rounded to zero", f"{table.zero_share:.1%}", f"of {table.values.size:,} values at {table.bits} bits"),
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.2f}".replace("-", "−") if math.isfinite(value) else "undefined"
