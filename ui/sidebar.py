"""The sidebar, present beside every tab: which model, on what device and why, under which recipe."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from analysis.architecture import by_role, in_words, total
from qvd_core.cost import site_costs
from qvd_core.errors import QvdError, RecipeError
from qvd_core.recipe import BITS, METHODS, Recipe
from ui import method_words, panels
from ui.errors import shown
from ui.history import undo_button
from ui.naming import at_bits, bits_in_words, bits_of, method_of, named, of_method, parse_bits
from ui.registry import Registry

METHOD_CHOICES = [(method_words.METHODS[method][0], method) for method in METHODS]
BITS_CHOICES = [(f"W{w}A{a}", f"w{w}a{a}") for w, a in BITS]
CUSTOM = ("Custom", "custom")


def sidebar(registry: Registry, model_name: gr.State, recipe: gr.State) -> None:
    """Build the sidebar; its menus write the states, and those of the recipe follow it."""
    with gr.Sidebar(width=300):
        gr.HTML(
            "<h1>QVD Studio</h1><p>What quantization does inside a video diffusion model, side by side.</p>",
            elem_classes=["qvd-title", "qvd-flush"],
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
        method_menu = gr.Dropdown(
            METHOD_CHOICES, value="minmax", label="Method", filterable=False, elem_id="method-menu"
        )
        bits_menu = gr.Dropdown(
            BITS_CHOICES, value="w8a8", label="Bits (W: weights, A: inputs)", filterable=False, elem_id="bits-menu"
        )
        words = gr.HTML(elem_id="method-words", elem_classes="qvd-flush")
        summary = gr.HTML(elem_id="recipe-summary", elem_classes="qvd-flush")
        undo_button(model_name, recipe)

    def choose_model(source: str, present: str) -> Iterator[tuple[Any, Any, str]]:
        """The state changes once the model is there; if it cannot be had, the menu returns to the present one."""
        yield gr.skip(), gr.skip(), panels.note(f"Loading {source.strip()}…")
        try:
            model = registry.model(source)
            yield gr.skip(), source.strip(), panels.note(f"Runs on {model.device}.")
        except QvdError as error:
            gr.Warning(escape(str(error), quote=False), duration=None)
            yield present, gr.skip(), panels.note(f"Runs on {registry.model(present).device}.")

    def choose_recipe(name: str, current: Recipe, method: str, bits: str) -> list[Any]:
        """Both menus count, so that two quick choices cannot lose the first; a custom recipe changes its bits only."""
        widths = parse_bits(bits)
        changed = of_method(method, *widths) if method != "custom" else named(at_bits(current, *widths))
        if method == "custom" and bits == bits_of(current):
            changed = current
        try:
            return [registry.checked(name, changed), gr.skip(), gr.skip(), gr.skip()]
        except RecipeError as error:
            gr.Warning(escape(str(error), quote=False), duration=None)
            return [gr.skip(), *follow(current)]

    def follow(current: Recipe) -> list[Any]:
        method, bits = method_of(current), bits_of(current)
        methods = METHOD_CHOICES if method else [*METHOD_CHOICES, CUSTOM]
        widths = [] if any(bits == known for _, known in BITS_CHOICES) else [(bits_in_words(current), bits)]
        return [
            gr.update(choices=methods, value=method or "custom"),
            gr.update(choices=[*BITS_CHOICES, *widths], value=bits),
            _words(current, method),
        ]

    @shown
    def summarize(name: str, current: Recipe) -> tuple[str, str]:
        model = registry.model(name)
        whole = total(by_role(site_costs(model.sites, current, None, model.spec.steps)))
        text = (
            f"Weights {in_words(whole.bytes_before, 'B')} → {in_words(whole.bytes_after, 'B')}"
            f" ({whole.bytes_before / whole.bytes_after:.2f}× smaller, computed). Arithmetic: simulated."
        )
        return panels.note(f"Runs on {model.device}."), panels.note(text)

    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "api_visibility": "private",
    }
    model_menu.input(choose_model, [model_menu, model_name], [model_menu, model_name, device], **quiet)
    menus = [method_menu, bits_menu]
    gr.on(
        [menu.input for menu in menus],
        choose_recipe,
        [model_name, recipe, *menus],
        [recipe, *menus, words],
        **quiet,
    )
    gr.on([model_name.change, recipe.change], follow, recipe, [*menus, words], **quiet)
    gr.on([model_name.change, recipe.change], summarize, [model_name, recipe], [device, summary], **quiet)


def _words(recipe: Recipe, method: str | None) -> str:
    text = method_words.METHODS[method][1] if method else method_words.CUSTOM
    return panels.note(text) + f'<p class="qvd-note"><code data-testid="recipe-name">{escape(recipe.name)}</code></p>'
