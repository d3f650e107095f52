"""Tab "Channels": what part of a layer's quantization grid each of its input channels uses, before and after SCRI.

Answers from calibration statistics alone; nothing here runs the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from analysis.methods import unlike_the_figure
from qvd_core.errors import CalibrationError, RecipeError
from qvd_core.formats import ACTIVATION_BITS, ActivationFormat
from qvd_core.recipe import Recipe
from ui import panels
from ui.errors import shown
from ui.layer_menu import layer_menu, offered
from ui.live_view import LiveView, Shown, beside, figure_slot, finding, one_of, whole_number, words_slot
from ui.registry import Registry
from ui.site_actions import site_actions

if TYPE_CHECKING:
    from analysis.channels import ChannelTable
    from qvd_core.calibration.statistics import CalibrationRun, Statistics
    from qvd_core.models.loader import VideoModel

ROLE = "temporal_attention"
"""Shown first if the model has it: where QVD integrates channel ranges."""

ABOUT = (
    "All channels of a layer's input share one grid of codes, as wide as the widest of them: a narrow or off-centre"
    " channel meets few codes (low coverage) and loses detail. SCRI, QVD's remedy, shifts every channel to a common"
    " centre and shrinks the widest; the layer's weights undo both exactly, so full precision is unchanged and only"
    " rounding gains: choose “shifted and scaled” below to watch it."
)
METRICS = [
    ("mean coverage", "coverage"),
    ("channel disparity", "disparity"),
    ("skewness", "skewness"),
    ("rounding error", "error"),
]
SORTS = [
    ("number", "channel"),
    ("width of range", "range"),
    ("centre of range", "centre"),
    ("rounding error", "error"),
]
STAGES = ["as it is", "shifted", "shifted and scaled"]


def channels_tab(registry: Registry, model_name: gr.State, recipe: gr.State, tab: gr.Tab) -> None:
    """Build the tab inside `tab`; it follows both states, and looks for new statistics whenever it is opened."""
    gr.HTML(panels.note(ABOUT), elem_classes="qvd-flush")
    metric = gr.Radio(METRICS, value="coverage", label="Map of all layers", elem_id="map-metric")
    overview = LiveView(
        registry, "map-view", words_slot("sentence") + figure_slot("map", 420), lambda *asked: _map(registry, *asked)
    )
    gr.HTML(panels.note("Click the map to look at a layer and a step."), elem_classes="qvd-flush")
    with gr.Row():
        layer = layer_menu("Layer (its role, mean coverage and path)", "channels-layer", ("channels-view", "layer"))
        sort = gr.Dropdown(SORTS, value="range", label="Sort channels by", min_width=240, elem_id="channels-sort")
    site_actions(registry, model_name, recipe, layer)
    with gr.Row():
        step = gr.Slider(0, 1, 0, step=1, label="Step (0: all together)", min_width=240, elem_id="channels-step")
        frame = gr.Slider(0, 1, 0, step=1, label="Frame (0: all together)", min_width=240, elem_id="channels-frame")
        bits = gr.Slider(
            ACTIVATION_BITS[0], ACTIVATION_BITS[-1], 8, step=1, label="Bits", min_width=240, elem_id="channels-bits"
        )
    with gr.Row():
        stage = gr.Radio(STAGES, value=STAGES[0], label="Channels", min_width=320, elem_id="channels-stage")
        threshold = gr.Slider(
            0.05,
            1,
            1,
            step=0.01,
            label="Threshold t, as a share of the widest channel (scaled only)",
            min_width=260,
            elem_id="channels-threshold",
        )
    controls = {
        "layer": layer,
        "step": step,
        "frame": frame,
        "bits": bits,
        "sort": sort,
        "stage": stage,
        "threshold": threshold,
    }
    slots = (
        words_slot("sentence")
        + figure_slot("ranges")
        + words_slot("cards")
        + beside(figure_slot("widths"), figure_slot("thresholds", 360))
        + words_slot("source")
    )
    view = LiveView(registry, "channels-view", slots, lambda *asked: _channels(registry, *asked))

    @shown
    def fit(name: str, site: str, at: float, in_frame: float) -> list[Any]:
        """Menus and sliders to the model: its layers, and the steps and frames it was calibrated for."""
        if not name:
            return [gr.skip()] * 3
        model = registry.model(name)
        statistics = registry.statistics(model)
        if statistics is None:
            return [gr.skip()] * 3
        layers, first = _layers(model, statistics)
        steps, frames = statistics.run.steps, statistics.run.frames
        return [
            offered(layers, site if site in statistics.low else first),
            gr.update(maximum=steps, value=min(int(at), steps)),
            gr.update(maximum=frames, value=min(int(in_frame), frames)),
        ]

    def follow_recipe(current: Recipe) -> Any:
        return gr.skip() if current.activations is None else current.activations.bits

    def go_to(event: gr.EventData) -> list[Any]:
        return [str(event.y), int(event.x)]

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    gr.on([model_name.change, tab.select], fit, [model_name, layer, step, frame], [layer, step, frame], **quiet)
    recipe.change(follow_recipe, recipe, bits, **quiet)
    overview.component.pick(go_to, None, [layer, step], **quiet)
    overview.follow(model_name, recipe, {"metric": metric}, tab.select)
    view.follow(model_name, recipe, controls, tab.select)


def _map(registry: Registry, model: VideoModel, recipe: Recipe, choices: dict[str, Any]) -> Mapping[str, Shown | str]:
    from analysis.figures.site_map import site_map as drawn
    from analysis.site_map import in_words, site_map

    statistics = _known(registry, model)
    metric = one_of(choices, "metric", [value for _, value in METRICS])
    roles = {site.name: site.role for site in model.sites}
    sites = tuple(site.name for site in model.sites if site.name in statistics.low)
    form = recipe.activations or ActivationFormat(8)
    table = site_map(statistics, sites, metric, ActivationFormat(form.bits, symmetric=form.symmetric))
    return {"sentence": finding(in_words(table, roles)), "map": Shown(drawn(table), table)}


def _channels(
    registry: Registry, model: VideoModel, recipe: Recipe, choices: dict[str, Any]
) -> Mapping[str, Shown | str]:
    """Figures and words of one layer."""
    from analysis.channels import channel_table, in_words
    from analysis.figures import channels as figures
    from analysis.scri import channel_widths, staged_transform, threshold_table

    statistics = _known(registry, model)
    if not choices.get("layer"):
        raise RecipeError("Choose a layer.")
    site = one_of(choices, "layer", statistics.low)
    at = whole_number(choices, "step", 0, statistics.run.steps)
    in_frame = whole_number(choices, "frame", 0, statistics.run.frames)
    bits = whole_number(choices, "bits", ACTIVATION_BITS[0], ACTIVATION_BITS[-1])
    stage = one_of(choices, "stage", STAGES)
    here = next(s for s in model.sites if s.name == site)
    weights, own = recipe.formats(site, here.role)
    symmetric = (own or recipe.activations or ActivationFormat(8)).symmetric
    form = ActivationFormat(bits, symmetric=symmetric)
    scaled = stage == STAGES[2]
    transform = staged_transform(model, statistics, site, stage)
    searched = None
    if scaled:
        share = choices.get("threshold")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise RecipeError(f"threshold = {share!r} is out of range; choose a share from 0.05 to 1.")
        searched = threshold_table(model, statistics, site, weights, form)
        searched = searched.showing(share * float(searched.thresholds[0]))
        transform = staged_transform(model, statistics, site, stage, searched.chosen)
    framed = site in statistics.channel_frame_low
    table = channel_table(
        statistics,
        site,
        form,
        at - 1 if at else None,
        one_of(choices, "sort", [value for _, value in SORTS]),
        frame=in_frame - 1 if in_frame and framed else None,
        transform=transform,
    )
    caveats = [unlike_the_figure(model, recipe, here, form)]
    if in_frame and not framed:
        caveats.append("Ranges of single frames are not kept for this input, so all frames are shown.")
    widths = channel_widths(statistics, site, "frame" if in_frame and framed else "step", symmetric, transform)
    found: dict[str, Any] = {
        "sentence": finding(" ".join([in_words(table), *caveats]).strip()),
        "ranges": Shown(figures.ranges(table), table),
        "cards": _cards(table),
        "widths": Shown(figures.widths(widths), widths),
        "thresholds": "",
        "source": panels.note(_provenance(statistics.run)),
    }
    if searched is not None:
        found["thresholds"] = Shown(figures.thresholds(searched), searched)
    return found


def _known(registry: Registry, model: VideoModel) -> Statistics:
    """The model's statistics.

    Raises:
        CalibrationError: there are none; the message says what to do.
    """
    statistics = registry.statistics(model)
    if statistics is None:
        raise CalibrationError(
            f"{model.spec.name} has not been calibrated, so the ranges of its channels are not known yet. Generate once"
            " in the Compare tab with a recipe of static ranges, such as minmax-w8a8: it calibrates first. Then come"
            " back here."
        )
    return statistics


def _layers(model: VideoModel, statistics: Statistics) -> tuple[list[tuple[str, str]], str]:
    """Menu entries for the layers that were calibrated, and the one to begin with: of `ROLE` the least covered."""
    from analysis.site_map import site_overview

    roles = {site.name: site.role for site in model.sites if site.name in statistics.low}
    rows = site_overview(statistics, list(roles))
    entries = [(f"{roles[row.site].replace('_', ' ')} · {row.mean:.0%} · {row.site}", row.site) for row in rows]
    first = min(rows, key=lambda row: (roles[row.site] != ROLE, row.mean))
    return entries, first.site


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
            ("Rounding error", f"{table.error.mean():.2e}", "squared, over the input's mean square, on sampled tokens"),
        ]
    )


def _provenance(run: CalibrationRun) -> str:
    prompts = "1 prompt" if len(run.prompts) == 1 else f"{len(run.prompts)} prompts"
    return (
        f"Smallest and largest values seen in full precision while sampling {prompts} in {run.steps} steps"
        f" ({run.sampler}, {run.frames} frames of {run.width}×{run.height}). The grid is one for all steps, as a static"
        " quantizer has it. Ranges say nothing about where inside them the values crowd. Of one step and one frame"
        " together only what each allows is known."
    )
