"""Tab "Errors": where the quantized model goes wrong, measured by running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import Recipe
from ui import panels
from ui.comparison_run import Progress, prepared
from ui.live_view import LiveView, Shown, figure_slot, finding, words_slot
from ui.long_run import Report, long_run
from ui.registry import Registry
from ui.running import Runs
from ui.site_actions import all_layers, site_actions

if TYPE_CHECKING:
    from analysis.errors import ErrorGrowth
    from analysis.site_map import SiteMap
    from qvd_core.sampling import StepInfo

DEFAULT = CATALOG["animatediff-mini"]


def errors_tab(registry: Registry, runs: Runs, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab; its buttons run the present model under the present recipe."""
    with gr.Row():
        prompt = gr.Textbox(DEFAULT.example_prompts[0], label="Prompt", scale=3, elem_id="errors-prompt")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=90, elem_id="errors-seed")
    asked = [model_name, recipe, prompt, seed]

    gr.HTML(
        panels.note(
            "Which part of the recipe makes the error? Weights, layer inputs and the time path are switched on alone,"
            " one clip each, and compared with full precision after every step."
        ),
        elem_classes="qvd-flush",
    )
    slots = words_slot("sentence") + figure_slot("growth")
    growth_view = LiveView(registry, "growth-view", slots, shown_later=True)
    long_run(
        runs,
        "causes",
        "Find the cause (five clips)",
        asked,
        lambda report, *values: _causes(registry, report, *values),
        [growth_view.component],
        lambda table: [growth_view.showing(_growth(table))],
    )
    growth_view.component.render()
    gr.HTML(
        panels.note(
            "Which layers make it? Every quantized layer is given what its full-precision original receives, so errors"
            " of earlier layers do not enter; |y′ − y|² / |y|² of its output, by layer and step. Click the map to"
            " change what the recipe does to a layer."
        ),
        elem_classes="qvd-flush",
    )
    slots = words_slot("sentence") + figure_slot("map", 420) + words_slot("worst")
    layers_view = LiveView(registry, "layers-view", slots, shown_later=True)
    long_run(
        runs,
        "layers",
        "Measure every layer (one clip)",
        asked,
        lambda report, *values: _layers(registry, report, *values),
        [layers_view.component],
        lambda found: [layers_view.showing(_layer_map(*found))],
    )
    layers_view.component.render()
    layer = all_layers(registry, model_name, "errors-layer")
    site_actions(registry, model_name, recipe, layer)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    layers_view.component.pick(_picked, None, layer, **quiet)


def _picked(event: gr.EventData) -> str:
    return str(event.y)


def _causes(
    registry: Registry, report: Report, name: str, recipe: Recipe, prompt: str, seed: float | None
) -> ErrorGrowth:
    from analysis.errors import error_growth_table
    from qvd_core.causes import error_growth

    model, settings = prepared(registry, name, recipe, prompt, int(seed or 0), None, None, report)

    def step_ended(part: str, number: int, count: int, info: StepInfo) -> None:
        share = (number + (info.index + 1) / info.total) / count
        report(Progress(f"{part[0].upper()}{part[1:]}: step {info.index + 1} of {info.total}", share))

    statistics = registry.statistics(model) if recipe.needs_statistics else None
    return error_growth_table(recipe.name, error_growth(model, recipe, settings, statistics, step_ended))


def _growth(table: ErrorGrowth) -> Mapping[str, Shown | str]:
    from analysis.figures.errors import error_growth

    return {"sentence": finding(table.in_words()), "growth": Shown(error_growth(table), table)}


def _layers(
    registry: Registry, report: Report, name: str, recipe: Recipe, prompt: str, seed: float | None
) -> tuple[SiteMap, dict[str, str], str]:
    from analysis.errors import output_error_map
    from qvd_core.site_error import site_errors

    model, settings = prepared(registry, name, recipe, prompt, int(seed or 0), None, None, report)
    variant = registry.variant(model, recipe)

    def step_ended(info: StepInfo) -> None:
        report(Progress(f"Step {info.index + 1} of {info.total}", (info.index + 1) / info.total))

    errors = site_errors(variant, settings, step_ended)
    return output_error_map(errors), {site.name: site.role for site in model.sites}, recipe.name


def _layer_map(table: SiteMap, roles: dict[str, str], name: str) -> Mapping[str, Shown | str]:
    from analysis.errors import worst_sites
    from analysis.figures.site_map import site_map
    from analysis.site_map import in_words

    sites, means = worst_sites(table, 8)
    rows = [(site, roles[site].replace("_", " "), f"{mean:.2e}") for site, mean in zip(sites, means, strict=True)]
    return {
        "sentence": finding(f"{name}: {in_words(table, roles)}"),
        "map": Shown(site_map(table), table),
        "worst": panels.table(("Layer", "Role", "Mean output error"), rows),
    }
