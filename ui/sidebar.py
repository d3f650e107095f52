"""The sidebar, present beside every tab: which model, on what device and why, under which recipe."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from analysis.architecture import by_role, in_words, total
from qvd_core.cost import site_costs
from qvd_core.errors import QvdError
from qvd_core.recipe import RECIPES, Recipe, get_recipe
from ui import panels
from ui.errors import shown
from ui.registry import Registry


def sidebar(registry: Registry, model_name: gr.State, recipe: gr.State) -> None:
    """Build the sidebar; its two menus write the states, and the recipe's follows it."""
    with gr.Sidebar(width=300):
        gr.HTML(
            "<h1>QVD Studio</h1><p>What quantization does inside a video diffusion model, side by side.</p>",
            elem_classes="qvd-title",
        )
        model_menu = gr.Dropdown(
            [(spec.title, spec.name) for spec in registry.offered()],
            value="animatediff-mini",
            label="Model",
            info="A hub id (owner/name) or a folder works too." if registry.any_model else None,
            allow_custom_value=registry.any_model,
            elem_id="model-menu",
        )
        device = gr.HTML(panels.note("Loading the model…"), elem_id="device", elem_classes="qvd-flush")
        recipe_menu = gr.Dropdown(list(RECIPES), value="minmax-w8a8", label="Recipe", elem_id="recipe-menu")
        summary = gr.HTML(elem_id="recipe-summary", elem_classes="qvd-flush")

    def choose_model(source: str, present: str) -> Iterator[tuple[Any, Any, str]]:
        """The state changes once the model is there; if it cannot be had, the menu returns to the present one."""
        yield gr.skip(), gr.skip(), panels.note(f"Loading {source.strip()}…")
        try:
            model = registry.model(source)
            yield gr.skip(), source.strip(), panels.note(f"Runs on {model.device}.")
        except QvdError as error:
            gr.Warning(escape(str(error), quote=False), duration=None)
            yield present, gr.skip(), panels.note(f"Runs on {registry.model(present).device}.")

    @shown
    def summarize(name: str, current: Recipe) -> tuple[str, Any, str]:
        model = registry.model(name)
        names = list(RECIPES) if current.name in RECIPES else [*RECIPES, current.name]
        rows = by_role(site_costs(model.sites, current, None))
        whole = total(rows)
        text = (
            f"Weights {in_words(whole.bytes_before, 'B')} → {in_words(whole.bytes_after, 'B')}"
            f" ({whole.bytes_before / whole.bytes_after:.2f}× smaller, computed). Arithmetic: simulated."
        )
        where = panels.note(f"Runs on {model.device}.")
        return where, gr.update(choices=names, value=current.name), panels.note(text)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    model_menu.input(
        choose_model,
        [model_menu, model_name],
        [model_menu, model_name, device],
        trigger_mode="always_last",
        **quiet,
    )
    recipe_menu.input(
        lambda chosen: get_recipe(chosen) if chosen in RECIPES else gr.skip(), recipe_menu, recipe, **quiet
    )
    gr.on(
        [model_name.change, recipe.change],
        summarize,
        [model_name, recipe],
        [device, recipe_menu, summary],
        trigger_mode="always_last",
        **quiet,
    )
