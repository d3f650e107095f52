"""Tab "Model": what the model consists of, and what the recipe makes of each part."""

from __future__ import annotations

import gradio as gr

from analysis.architecture import by_role
from qvd_core.cost import SiteCost, site_costs
from qvd_core.recipe import Recipe
from ui import panels
from ui.errors import shown
from ui.registry import Registry

LAYER_COLUMNS = ["Layer", "Role", "Kind", "In", "Out", "Parameters", "Weight bits", "Input bits", "KB fp16", "KB after"]


def model_tab(registry: Registry, model_name: gr.State, recipe: gr.State, tab: gr.Tab) -> None:
    """Build the tab inside `tab`; it follows both states, and looks for new statistics whenever it is opened."""
    cards = gr.HTML(panels.note("Loading the model…"), elem_id="model-cards", elem_classes="qvd-flush")
    table = gr.HTML(elem_id="model-roles", elem_classes="qvd-flush")
    gr.Markdown(
        "Sizes and bit operations are **computed** from shapes and bit widths (scales and biases counted, fp16 as"
        " 16 bits); nothing here is a measured speed. Counted are linear layers and convolutions. Attention products,"
        " norms, the text encoder and the VAE stay in floating point and are left out on both sides.",
        elem_classes="qvd-note",
    )
    with gr.Accordion("Every layer", open=False):
        layers = gr.Dataframe(headers=LAYER_COLUMNS, interactive=False, max_height=480, show_label=False)

    @shown
    def update(name: str, current: Recipe) -> tuple[object, object, object]:
        if not name:  # the page is still opening
            return gr.skip(), gr.skip(), gr.skip()
        model = registry.model(name)
        statistics = registry.statistics(model)
        macs, steps = (None, model.spec.steps) if statistics is None else (statistics.macs, statistics.run.steps)
        costs = site_costs(model.sites, current, macs, steps)
        table_html = panels.role_table(by_role(costs))
        if not model.mapped:
            table_html += panels.note("The roles of this family are not known, so its layers have the generic ones.")
        return panels.size_cards(costs, model.spec.name), table_html, [_layer(c) for c in costs]

    gr.on(
        [model_name.change, recipe.change, tab.select],
        update,
        [model_name, recipe],
        [cards, table, layers],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _layer(cost: SiteCost) -> list[object]:
    site = cost.site
    return [
        site.name,
        site.role,
        site.kind,
        site.in_channels,
        site.out_channels,
        site.parameters,
        cost.weight_bits or "float",
        cost.activation_bits or "float",
        round(cost.bytes_before / 1e3, 2),
        round(cost.bytes_after / 1e3, 2),
    ]
