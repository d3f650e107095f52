"""Undo of changes to the recipe, wherever they were made."""

from __future__ import annotations

from typing import Any

import gradio as gr

from qvd_core.recipe import Recipe

MOST = 50


def undo_button(model_name: gr.State, recipe: gr.State) -> None:
    """Build a button that takes back the last change of `recipe`, as often as there are changes."""
    past = gr.State([])  # recipes, the present one last
    button = gr.Button("Undo", size="sm", interactive=False, elem_id="undo")

    def remember(current: Recipe, recipes: list[Recipe]) -> tuple[list[Recipe], Any]:
        if not recipes or recipes[-1] != current:
            recipes = [*recipes, current][-MOST:]
        return recipes, gr.update(interactive=len(recipes) > 1)

    def undo(recipes: list[Recipe]) -> tuple[list[Recipe], Any]:
        if len(recipes) < 2:
            return recipes, gr.skip()
        return recipes[:-1], recipes[-2]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # The model is set once when the page opens, also if the recipe then stays as it is.
    gr.on([model_name.change, recipe.change], remember, [recipe, past], [past, button], **quiet)
    button.click(undo, past, [past, recipe], **quiet)
