"""Tab "Channels": what part of a layer's quantization grid each of its input channels uses.

Answers from calibration statistics alone; nothing here runs the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from analysis.methods import unlike_the_figure
from qvd_core.errors import CalibrationError
from qvd_core.formats import ActivationFormat
from qvd_core.recipe import Recipe
from ui import panels
from ui.errors import shown
from ui.figure_panel import figure_panel, figure_payload, finding
from ui.registry import Registry

if TYPE_CHECKING:
    from analysis.channels import ChannelTable
    from qvd_core.calibration.statistics import CalibrationRun, Statistics
    from qvd_core.models.loader import VideoModel

ROLE = "temporal_attention"
"""Shown first if the model has it: where QVD integrates channel ranges."""

SORTS = [("number", "channel"), ("width of range", "range"), ("centre of range", "centre")]


def channels_tab(registry: Registry, model_name: gr.State, recipe: gr.State, tab: gr.Tab) -> None:
    """Build the tab inside `tab`; it follows both states, and looks for new statistics whenever it is opened."""
    notice = gr.HTML(panels.note("Loading the model…"), elem_id="channels-notice")
    with gr.Column(visible=False) as body:
        with gr.Row():
            role = gr.Dropdown([], label="Role", min_width=180, elem_id="channels-role")
            layer = gr.Dropdown([], label="Mean coverage and layer", scale=2, min_width=260, elem_id="channels-layer")
        with gr.Row():
            step = gr.Slider(0, 1, 0, step=1, label="Step (0: all together)", min_width=220, elem_id="channels-step")
            sort = gr.Radio(SORTS, value="range", label="Sort channels by", min_width=260, elem_id="channels-sort")
        sentence = gr.HTML(elem_id="channels-sentence")
        figure = figure_panel(elem_id="channels-figure")
        cards = gr.HTML(elem_id="channels-cards")
        source = gr.HTML(elem_id="channels-source")
    results = [figure, cards, sentence]

    @shown
    def follow(name: str, current: Recipe, chosen_role: str, site: str, at: float, order: str) -> list[Any]:
        if not name:
            return [gr.skip()] * 9
        model, statistics, problem = _known(registry, name)
        if statistics is None:
            said = gr.update(value=panels.note(problem), visible=True)
            return [said, gr.update(visible=False), *[gr.skip()] * 3, None, "", "", ""]
        roles = _roles(model, statistics)
        if chosen_role not in roles:
            chosen_role = ROLE if ROLE in roles else next(iter(roles))
        layers, least = _layers(statistics, roles[chosen_role])
        site = site if site in roles[chosen_role] else least
        at = min(int(at), statistics.run.steps)
        return [
            gr.update(visible=False),
            gr.update(visible=True),
            gr.update(choices=[(r.replace("_", " "), r) for r in roles], value=chosen_role),
            gr.update(choices=layers, value=site),
            gr.update(maximum=statistics.run.steps, value=at),
            *_results(model, statistics, current, site, at, order),
            panels.note(_provenance(statistics.run)),
        ]

    @shown
    def choose_role(name: str, chosen: str, site: str) -> Any:
        model, statistics, _ = _known(registry, name)
        sites = [] if statistics is None else _roles(model, statistics).get(chosen, [])
        if statistics is None or not sites or site in sites:
            return gr.skip()
        layers, least = _layers(statistics, sites)
        return gr.update(choices=layers, value=least)

    @shown
    def draw(name: str, current: Recipe, site: str, at: float, order: str) -> list[Any]:
        if not name:
            return [gr.skip()] * 3
        model, statistics, _ = _known(registry, name)
        if statistics is None or site not in statistics.low:
            return [gr.skip()] * 3
        return _results(model, statistics, current, site, min(int(at), statistics.run.steps), order)

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    gr.on(
        [model_name.change, tab.select],
        follow,
        [model_name, recipe, role, layer, step, sort],
        [notice, body, role, layer, step, *results, source],
        **quiet,
    )
    role.change(choose_role, [model_name, role, layer], layer, **quiet)
    changes = [recipe.change, layer.change, step.change, sort.change]
    gr.on(changes, draw, [model_name, recipe, layer, step, sort], results, **quiet)


def _known(registry: Registry, name: str) -> tuple[VideoModel, Statistics | None, str]:
    """The model, its statistics, and if there are none, why and what to do."""
    model = registry.model(name)
    try:
        statistics, problem = registry.statistics(model), ""
    except CalibrationError as error:
        statistics, problem = None, str(error)
    if statistics is None and not problem:
        problem = (
            f"{model.spec.name} has not been calibrated, so the ranges of its channels are not known yet. Generate once"
            " in the Compare tab with a recipe of static ranges, such as minmax-w8a8: it calibrates first. Then come"
            " back here."
        )
    return model, statistics, problem


def _roles(model: VideoModel, statistics: Statistics) -> dict[str, list[str]]:
    """The layers that were calibrated, by role, in the model's order."""
    roles: dict[str, list[str]] = {}
    for site in model.sites:
        if site.name in statistics.low:
            roles.setdefault(site.role, []).append(site.name)
    return roles


def _layers(statistics: Statistics, sites: list[str]) -> tuple[list[tuple[str, str]], str]:
    """Menu entries for `sites`, and the site of least mean coverage."""
    from analysis.channels import site_overview

    rows = site_overview(statistics, sites)
    return [(f"{row.mean:.0%} · {row.site}", row.site) for row in rows], min(rows, key=lambda row: row.mean).site


def _results(model: VideoModel, statistics: Statistics, recipe: Recipe, site: str, at: int, order: str) -> list[Any]:
    """Figure, cards and sentence of one layer; `at` is 1-based, 0 for all steps."""
    from analysis.channels import channel_table, in_words
    from analysis.figures import channel_ranges

    here = next(s for s in model.sites if s.name == site)
    drawn = recipe.formats(site, here.role)[1] or recipe.activations or ActivationFormat(8)
    table = channel_table(statistics, site, drawn, at - 1 if at else None, order)
    caveat = unlike_the_figure(model, recipe, here, drawn)
    return [figure_payload(channel_ranges(table)), _cards(table), finding(f"{in_words(table)} {caveat}".strip())]


def _cards(table: ChannelTable) -> str:
    narrowest = int(table.coverage.argmin())
    return panels.cards(
        [
            ("Mean coverage", f"{table.coverage.mean():.0%}", "of the grid's width, over all channels"),
            (
                "Narrowest channel",
                f"{table.coverage[narrowest]:.1%}",
                f"of the grid's width, channel {table.channel[narrowest]}",
            ),
            (
                "Codes of the median channel",
                f"{table.median_codes:,} of {table.available_codes:,}",
                f"reached at {table.form.bits} bits, at most",
            ),
        ]
    )


def _provenance(run: CalibrationRun) -> str:
    prompts = "1 prompt" if len(run.prompts) == 1 else f"{len(run.prompts)} prompts"
    return (
        f"Smallest and largest values seen in full precision while sampling {prompts} in {run.steps} steps"
        f" ({run.sampler}, {run.frames} frames of {run.width}×{run.height}). The grid is one for all steps, as a static"
        " quantizer has it. Ranges say nothing about where inside them the values crowd."
    )
