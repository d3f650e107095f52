"""Controls of exceptions: layers with bits of their own, and layers that stay in floating point."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import gradio as gr

from qvd_core.formats import ACTIVATION_BITS, WEIGHT_BITS, Override
from qvd_core.recipe import Recipe
from ui import panels
from ui.controls import Values, heading
from ui.method_words import RANGES, SEARCHES

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

FLOAT = ("float", 0)
RANGE_NAMES = {value: name for name, value in RANGES}
SEARCH_NAMES = {value: name for name, value in SEARCHES}


class ExceptionControls:
    """A list of layers left in floating point, and a row that gives others bits of their own."""

    def __init__(self) -> None:
        heading(
            "Exceptions",
            "Name a role, a layer, or a pattern such as `up_blocks.2.*`. Where several match, the last one decides.",
        )
        self.exempt = gr.Dropdown(
            [], label="Keep in floating point", multiselect=True, allow_custom_value=True, elem_id="exempt"
        )
        with gr.Row(equal_height=True):
            self.where = gr.Dropdown(
                [],
                label="Give other bits to",
                allow_custom_value=True,
                scale=2,
                min_width=220,
                elem_id="exception-where",
            )
            with gr.Column(scale=2, min_width=220), gr.Row():
                self.weight_bits, self.input_bits = (
                    gr.Dropdown([FLOAT, *((str(bits), bits) for bits in allowed)], value=8, label=label, min_width=90)
                    for label, allowed in (("Weight bits", WEIGHT_BITS), ("Input bits", ACTIVATION_BITS))
                )
            with gr.Column(scale=1, min_width=120):
                self.add = gr.Button("Add", size="sm", elem_id="exception-add")
                self.remove = gr.Button("Remove", size="sm", elem_id="exception-remove")
        self.listing = gr.HTML(elem_id="recipe-exceptions", elem_classes="qvd-flush")
        self.clear = gr.Button("Remove all exceptions", size="sm")
        self.inputs: list[Any] = [self.exempt]
        self.outputs: list[Any] = [self.exempt, self.listing]

    def read(self, values: Values, recipe: Recipe) -> Recipe:
        """Exceptions stay in the order of the present recipe; new ones come last."""
        chosen = list(values[self.exempt] or ())
        kept = [o for o in recipe.overrides if not _is_exemption(o) or o.sites in chosen]
        known = {o.sites for o in kept if _is_exemption(o)}
        added = [Override(sites, None, None) for sites in chosen if sites not in known]
        return dataclasses.replace(recipe, overrides=(*kept, *added))

    def show(self, recipe: Recipe) -> dict[Any, Any]:
        return {self.exempt: [o.sites for o in recipe.overrides if _is_exemption(o)]}

    def explain(self, recipe: Recipe, model: VideoModel | None) -> dict[Any, Any]:
        return {self.listing: _listing([o for o in recipe.overrides if not _is_exemption(o)])}

    def offer(self, names: list[str]) -> dict[Any, Any]:
        """Updates that let `names`, roles and layers, be chosen."""
        return {self.where: gr.update(choices=names), self.exempt: gr.update(choices=names)}


def with_exception(recipe: Recipe, sites: str | None, weight_bits: int, input_bits: int) -> Recipe:
    """`recipe` with other bits for `sites`; 0 leaves floating point."""
    return recipe.override(sites or "", int(weight_bits) or None, int(input_bits) or None)


def without_exception(recipe: Recipe, sites: str | None) -> Recipe:
    """`recipe` without the exceptions of `sites`."""
    return dataclasses.replace(recipe, overrides=tuple(o for o in recipe.overrides if o.sites != sites))


def without_exceptions(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, overrides=())


def _is_exemption(override: Override) -> bool:
    return override.weight_bits is None and override.activation_bits is None


def _listing(exceptions: list[Override]) -> str:
    if not exceptions:
        return panels.note("No layer has bits of its own.")
    rows = [(o.sites, _width(o.weight_bits), _width(o.activation_bits), _formats(o)) for o in exceptions]
    return panels.table(("Sites", "Weight bits", "Input bits", "Range of inputs"), rows)


def _formats(override: Override) -> str:
    chosen = [RANGE_NAMES[override.range]] if override.range else []
    chosen += [SEARCH_NAMES[override.search]] if override.search else []
    return ", ".join(chosen) or "as all"


def _width(bits: int | None) -> str:
    return "float" if bits is None else str(bits)
