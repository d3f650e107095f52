"""Tab "Recipe": all of a recipe, to see and to change. Every control answers at once; nothing runs the model."""

from __future__ import annotations

import dataclasses
from html import escape
from typing import Any

import gradio as gr

from qvd_core.errors import RecipeError
from qvd_core.recipe import Recipe
from ui.controls import Controls, Values, by_hand
from ui.errors import shown
from ui.exception_controls import ExceptionControls, with_exception, without_exception, without_exceptions
from ui.format_controls import InputControls, WeightControls
from ui.method_controls import ChannelControls, TemporalControls
from ui.method_words import requirements
from ui.naming import named
from ui.registry import Registry


def recipe_tab(registry: Registry, model_name: gr.State, recipe: gr.State) -> None:
    """Build the tab: its controls write the recipe, and follow it when it changes elsewhere."""
    own = gr.State(recipe.value)  # what the controls say, so that they need not follow themselves
    line = gr.HTML(elem_id="recipe-line", elem_classes="qvd-flush")
    with gr.Row():
        with gr.Column(min_width=280):
            weights = WeightControls()
            channels = ChannelControls()
        with gr.Column(min_width=280):
            inputs = InputControls()
            temporal = TemporalControls()
    exceptions = ExceptionControls()
    groups: list[Controls] = [weights, inputs, temporal, channels, exceptions]
    controls = [component for group in groups for component in group.inputs]
    followers = [own, line, *(component for group in groups for component in group.outputs)]

    def show(current: Recipe) -> dict[Any, Any]:
        return {component: update for group in groups for component, update in group.show(current).items()}

    def explain(name: str, current: Recipe) -> dict[Any, Any]:
        model = registry.loaded(name)
        texts = {line: _line(current, requirements(current, model))}
        return texts | {part: text for group in groups for part, text in group.explain(current, model).items()}

    def follow(name: str, current: Recipe, composed: Recipe) -> dict[Any, Any]:
        """The controls follow a recipe from elsewhere; of their own, nothing but the words may be new."""
        return explain(name, current) | ({} if current == composed else {own: current} | show(current))

    def compose(values: Values) -> dict[Any, Any]:
        """The recipe the controls describe; what describes none returns to the present one."""
        name, current = values[model_name], values[recipe]
        try:
            changed = registry.checked(name, read(groups, values, current))
        except RecipeError as error:
            gr.Warning(escape(str(error), quote=False), duration=None)
            changed = current
        if dataclasses.replace(changed, name=current.name) == current:
            changed = current
        # Not what they already hold: sent back, it would undo what a person has done since.
        return {recipe: changed, own: changed} | news(show(changed), values) | explain(name, changed)

    @shown
    def add_exception(name: str, current: Recipe, sites: str | None, w: int, a: int) -> Recipe:
        return registry.checked(name, named(with_exception(current, sites, w, a)))

    @shown
    def offer(name: str) -> dict[Any, Any]:
        model = registry.model(name)
        roles = list(dict.fromkeys(site.role for site in model.sites))
        names = [*roles, *(site.name for site in model.sites)]
        return channels.offer(names) | exceptions.offer(names)

    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "trigger_mode": "always_last",
        "api_visibility": "private",
    }
    edits = [event for control in controls for event in by_hand(control)]
    gr.on(edits, compose, {model_name, recipe, *controls}, [recipe, *followers], **quiet)
    states = [model_name, recipe, own]
    gr.on([model_name.change, recipe.change], follow, states, followers, **quiet)
    # Once more when the model is there: how many layers a method touches could not be told before.
    model_name.change(offer, model_name, [channels.sites, exceptions.where, exceptions.exempt], **quiet).then(
        follow, states, followers, show_progress="hidden", api_visibility="private"
    )
    chosen = [exceptions.where, exceptions.weight_bits, exceptions.input_bits]
    exceptions.add.click(add_exception, [model_name, recipe, *chosen], recipe, **quiet)
    exceptions.remove.click(
        lambda current, sites: named(without_exception(current, sites)), [recipe, exceptions.where], recipe, **quiet
    )
    exceptions.clear.click(lambda current: named(without_exceptions(current)), recipe, recipe, **quiet)


def read(groups: list[Controls], values: Values, recipe: Recipe) -> Recipe:
    """The recipe the controls describe, under its name; what they do not hold stays as in `recipe`."""
    for group in groups:
        recipe = group.read(values, recipe)
    return named(recipe)


def news(updates: dict[Any, Any], values: Values) -> dict[Any, Any]:
    """`updates` without the values that components have anyway."""
    found = {}
    for component, update in updates.items():
        known = component in values
        if isinstance(update, dict) and known and update.get("value") == values[component]:
            update = {key: value for key, value in update.items() if key != "value"}
        elif known and not isinstance(update, dict) and update == values[component]:
            continue
        found[component] = update
    return found


def _line(recipe: Recipe, needs: str) -> str:
    return f'<p class="qvd-recipe"><code>{escape(recipe.name)}</code> {escape(needs)}</p>'
