"""Tab "Recipe": bit widths, grids, exceptions. Every control answers at once; nothing runs the model."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from qvd_core.errors import RecipeError
from qvd_core.recipe import RECIPES, ActivationFormat, Override, Recipe, WeightFormat
from ui import panels
from ui.errors import shown
from ui.registry import Registry

SYMMETRIC, AFFINE = "symmetric", "affine"
STATIC, DYNAMIC = "static per tensor", "dynamic per token"


def recipe_tab(registry: Registry, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab: its controls write the recipe, and follow it when it changes elsewhere."""
    with gr.Row():
        with gr.Column(min_width=280):
            gr.Markdown("#### Weights\nOne scale per output channel, from its smallest and largest weight.")
            weights_on = gr.Checkbox(True, label="Quantize weights")
            weight_bits = gr.Slider(2, 8, 8, step=1, label="Weight bits", elem_id="weight-bits")
            weight_grid = gr.Radio([SYMMETRIC, AFFINE], value=SYMMETRIC, label="Weight grid")
        with gr.Column(min_width=280):
            gr.Markdown("#### Layer inputs\nRounded as they arrive, before every linear layer and convolution.")
            inputs_on = gr.Checkbox(True, label="Quantize inputs")
            input_bits = gr.Slider(3, 16, 8, step=1, label="Input bits", elem_id="input-bits")
            input_range = gr.Radio([STATIC, DYNAMIC], value=STATIC, label="Range")
            input_grid = gr.Radio([SYMMETRIC, AFFINE], value=AFFINE, label="Input grid")
    gr.Markdown(
        "#### Exceptions\nName a role, a layer, or a pattern such as `up_blocks.2.*`. Where several match, the one"
        " added last decides."
    )
    with gr.Row(equal_height=True):
        where = gr.Dropdown([], label="Give other bits to", allow_custom_value=True, scale=3, min_width=220)
        their_weight_bits = gr.Slider(2, 8, 8, step=1, label="Weight bits", scale=2, min_width=140)
        their_input_bits = gr.Slider(3, 16, 8, step=1, label="Input bits", scale=2, min_width=140)
        add = gr.Button("Add", scale=1, min_width=80)
    exempt = gr.Dropdown(
        [], label="Keep in floating point", multiselect=True, allow_custom_value=True, elem_id="exempt"
    )
    listing = gr.HTML(elem_id="recipe-exceptions", elem_classes="qvd-flush")
    clear = gr.Button("Remove all exceptions", size="sm")

    controls: list[Any] = [weights_on, weight_bits, weight_grid, inputs_on, input_bits, input_range, input_grid, exempt]

    def compose(name: str, current: Recipe, *values: Any) -> list[Any]:
        try:
            return [_checked(registry, name, _compose(current, *values)), gr.skip()]
        except RecipeError as error:  # the list of exemptions must not keep what the recipe does not have
            gr.Warning(escape(str(error), quote=False), duration=None)
            return [gr.skip(), [o.sites for o in current.overrides if _is_exemption(o)]]

    @shown
    def follow(current: Recipe) -> list[Any]:
        return [*_control_values(current), _listing(current)]

    @shown
    def add_exception(name: str, current: Recipe, sites: str | None, w: int, a: int) -> Recipe:
        changed = current.override(sites or "", int(w), int(a))
        return _checked(registry, name, _named(changed))

    @shown
    def choices(name: str) -> tuple[Any, Any]:
        model = registry.model(name)
        roles = list(dict.fromkeys(site.role for site in model.sites))
        names = [*roles, *(site.name for site in model.sites)]
        return gr.update(choices=names), gr.update(choices=names)

    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "api_visibility": "private",
    }
    # Only what a person does: .change would also fire while the controls follow a new recipe one by one, and
    # compose a mixture of the two. A slider's .release catches its reset arrow and typed numbers.
    by_hand = [control.input for control in controls] + [weight_bits.release, input_bits.release]
    gr.on(by_hand, compose, [model_name, recipe, *controls], [recipe, exempt], **quiet)
    recipe.change(follow, recipe, [*controls, listing], **quiet)
    model_name.change(choices, model_name, [where, exempt], **quiet)
    add.click(add_exception, [model_name, recipe, where, their_weight_bits, their_input_bits], recipe, **quiet)
    clear.click(lambda current: _named(_without_exceptions(current)), recipe, recipe, **quiet)


def _compose(
    current: Recipe,
    weights_on: bool,
    weight_bits: int,
    weight_grid: str,
    inputs_on: bool,
    input_bits: int,
    input_range: str,
    input_grid: str,
    exempt: list[str] | None,
) -> Recipe:
    """The recipe the controls describe; exceptions stay in the order of the current one, new ones come last."""
    weights = WeightFormat(int(weight_bits), weight_grid == SYMMETRIC) if weights_on else None
    how = "static_per_tensor" if input_range == STATIC else "dynamic_per_token"
    grid = input_grid == SYMMETRIC
    activations = ActivationFormat(int(input_bits), how, grid) if inputs_on else None  # type: ignore[arg-type]
    chosen = list(exempt or ())
    kept = [o for o in current.overrides if not _is_exemption(o) or o.sites in chosen]
    known = {o.sites for o in kept if _is_exemption(o)}
    added = [Override(sites, None, None) for sites in chosen if sites not in known]
    return _named(Recipe("", weights, activations, (*kept, *added)))


def _named(recipe: Recipe) -> Recipe:
    """The same recipe under the name of the named one it equals, or as a custom one."""
    for known in RECIPES.values():
        if (known.weights, known.activations, known.overrides) == (
            recipe.weights,
            recipe.activations,
            recipe.overrides,
        ):
            return known
    w = f"w{recipe.weights.bits}" if recipe.weights else "w-float"
    a = f"a{recipe.activations.bits}" if recipe.activations else "a-float"
    exceptions = f"+{len(recipe.overrides)}" if recipe.overrides else ""
    return Recipe(f"custom-{w}{a}{exceptions}", recipe.weights, recipe.activations, recipe.overrides)


def _without_exceptions(recipe: Recipe) -> Recipe:
    return Recipe(recipe.name, recipe.weights, recipe.activations)


def _checked(registry: Registry, name: str, recipe: Recipe) -> Recipe:
    """`recipe`, once it is known to match the model; a model still loading is checked when it is used."""
    model = registry.loaded(name)
    if model is not None:
        from qvd_core.variant import check_overrides

        check_overrides(model, recipe)
    return recipe


def _control_values(recipe: Recipe) -> list[Any]:
    """What the controls show for `recipe`; a format that is off leaves its details as they were."""
    weights, activations = recipe.weights, recipe.activations
    keep = gr.skip()
    return [
        weights is not None,
        keep if weights is None else weights.bits,
        keep if weights is None else SYMMETRIC if weights.symmetric else AFFINE,
        activations is not None,
        keep if activations is None else activations.bits,
        keep if activations is None else STATIC if activations.range == "static_per_tensor" else DYNAMIC,
        keep if activations is None else SYMMETRIC if activations.symmetric else AFFINE,
        [o.sites for o in recipe.overrides if _is_exemption(o)],
    ]


def _is_exemption(override: Override) -> bool:
    return override.weight_bits is None and override.activation_bits is None


def _listing(recipe: Recipe) -> str:
    others = [o for o in recipe.overrides if not _is_exemption(o)]
    if not others:
        return panels.note("No layer has bits of its own.")
    lines = "".join(
        f"<tr><td>{escape(o.sites)}</td><td>{_width(o.weight_bits)}</td><td>{_width(o.activation_bits)}</td></tr>"
        for o in others
    )
    head = "<tr><th>Sites</th><th>Weight bits</th><th>Input bits</th></tr>"
    return f'<table class="qvd-table"><thead>{head}</thead><tbody>{lines}</tbody></table>'


def _width(bits: int | None) -> str:
    return "float" if bits is None else str(bits)
