"""What the groups of controls in the Recipe tab have in common: each shows a part of the recipe, and reads it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import gradio as gr

from qvd_core.recipe import Recipe
from ui import panels

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

Values = Mapping[Any, Any]
"""By component, what it holds."""


class Controls(Protocol):
    """A group of controls.

    Attributes:
        inputs: the components a person sets.
        outputs: those and what else follows the recipe.
    """

    inputs: list[Any]
    outputs: list[Any]

    def read(self, values: Values, recipe: Recipe) -> Recipe:
        """`recipe` with this group's part as the controls say."""
        ...

    def show(self, recipe: Recipe) -> dict[Any, Any]:
        """What each component is to hold; a choice that is off leaves its details as they were."""
        ...

    def explain(self, recipe: Recipe, model: VideoModel | None) -> dict[Any, Any]:
        """The words beside the components; `model` is None until it is loaded."""
        ...


def by_hand(component: Any) -> list[Callable[..., Any]]:
    """The events of a person's changes alone.

    `.change` would also fire while the controls follow a new recipe one by one, and compose a mixture of the two.
    A slider's `.release` catches its reset arrow and typed numbers. A number is complete when it is left or
    confirmed: digit by digit it would come back, half typed, from the recipe.
    """
    if isinstance(component, gr.Number):
        return [component.submit, component.blur]
    if isinstance(component, gr.Slider):
        return [component.input, component.release]
    return [component.input]


def heading(title: str, text: str) -> None:
    """A title with a subdued sentence under it."""
    gr.Markdown(f"#### {title}\n{text}", elem_classes="qvd-heading")


def remark() -> gr.HTML:
    """A subdued paragraph that follows the recipe."""
    return gr.HTML(panels.note(""), elem_classes="qvd-flush")
