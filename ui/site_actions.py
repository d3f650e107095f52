"""What can be done about a layer from where it is seen: the recipe changes everywhere, and Undo takes it back."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from qvd_core.errors import RecipeError
from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.recipe import Recipe
from ui.errors import shown
from ui.layer_menu import layer_menu, offered
from ui.naming import named
from ui.registry import Registry

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

MORE = 2  # bits


def all_layers(registry: Registry, model_name: gr.State, elem_id: str) -> gr.HTML:
    """Build a menu of all layers of the model, with nothing chosen yet."""
    menu = layer_menu("Layer (click the figure, or choose)", elem_id)

    @shown
    def offer(name: str, chosen: str | None) -> Any:
        if not name:
            return gr.skip()
        sites = registry.model(name).sites
        return offered([(f"{site.role.replace('_', ' ')} · {site.name}", site.name) for site in sites], chosen)

    model_name.change(offer, [model_name, menu], menu, show_progress="hidden", api_visibility="private")
    return menu


def site_actions(registry: Registry, model_name: gr.State, recipe: gr.State, layer: gr.HTML) -> None:
    """Build a row of buttons that change how `recipe` treats the chosen layer and those that read the same input."""
    words = gr.HTML(elem_id=f"{layer.elem_id}-formats", elem_classes="qvd-flush")
    with gr.Row():
        exempt = gr.Button("Keep in floating point", size="sm", min_width=120)
        more = gr.Button(f"{MORE} more bits", size="sm", min_width=90)
        dynamic = gr.Button("A range per token", size="sm", min_width=120)
        again = gr.Button("As the recipe", size="sm", min_width=100)

    @shown
    def exempted(name: str, current: Recipe, site: str) -> Recipe:
        return _changed(registry.model(name), current, site, lambda w, a: (None, None, {}))

    @shown
    def widened(name: str, current: Recipe, site: str) -> Recipe:
        def wider(weights: WeightFormat | None, inputs: ActivationFormat | None) -> Any:
            return (
                weights and min(weights.bits + MORE, 8),
                inputs and min(inputs.bits + MORE, 16),
                {"range": inputs.range, "search": inputs.search} if inputs else {},
            )

        return _changed(registry.model(name), current, site, wider)

    @shown
    def made_dynamic(name: str, current: Recipe, site: str) -> Recipe:
        def by_token(weights: WeightFormat | None, inputs: ActivationFormat | None) -> Any:
            if inputs is None:
                raise RecipeError("This input stays in floating point, so it has no range; choose another layer.")
            return weights and weights.bits, inputs.bits, {"range": "dynamic_per_token"}

        return _changed(registry.model(name), current, site, by_token)

    @shown
    def as_recipe(name: str, current: Recipe, site: str) -> Recipe:
        from ui.exception_controls import without_exception

        for reader in _readers(registry.model(name), site):
            current = without_exception(current, reader)
        return named(current)

    def say(name: str, current: Recipe, site: str) -> str:
        model = registry.loaded(name)
        here = None if model is None else next((s for s in model.sites if s.name == site), None)
        return "" if model is None or here is None else _words(model, current, site, here.role)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    for button, act in ((exempt, exempted), (more, widened), (dynamic, made_dynamic), (again, as_recipe)):
        button.click(act, [model_name, recipe, layer], recipe, **quiet)
    gr.on([layer.change, recipe.change], say, [model_name, recipe, layer], words, trigger_mode="always_last", **quiet)


def _readers(model: VideoModel, site: str) -> tuple[str, ...]:
    """The layers that read the same input as `site`, it among them."""
    from qvd_core.models.sites import find_inputs

    return next(i.consumers for i in find_inputs(model.denoiser, model.sites) if site in i.consumers)


def _changed(model: VideoModel, recipe: Recipe, site: str, change: Any) -> Recipe:
    roles = {s.name: s.role for s in model.sites}
    if site not in roles:
        raise RecipeError("Choose a layer first.")
    for reader in _readers(model, site):
        weight_bits, input_bits, formats = change(*recipe.formats(reader, roles[reader]))
        recipe = recipe.override(reader, weight_bits, input_bits, **formats)
    return recipe


def _words(model: VideoModel, recipe: Recipe, site: str, role: str) -> str:
    weights, inputs = recipe.formats(site, role)
    readers = _readers(model, site)
    also = f", for all {len(readers)} layers that read this input" if len(readers) > 1 else ""
    first = "weights in floating point" if weights is None else f"weights at {weights.bits} bits"
    second = (
        "inputs in floating point"
        if inputs is None
        else f"inputs at {inputs.bits} bits, {inputs.range.replace('_', ' ')}"
    )
    return f'<p class="qvd-note">In <code>{escape(recipe.name)}</code>: {first}, {second}. Change that{also}:</p>'
