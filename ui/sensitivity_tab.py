"""Tab "Sensitivity": what each layer costs when it alone is quantized, and bits within a budget.

The estimate rests on calibration statistics and answers a moving slider; the measurement runs the denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from analysis.drawing import number
from analysis.memory import remembered
from qvd_core.cost import site_costs
from qvd_core.errors import CalibrationError
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import RECIPES, Recipe
from ui import panels
from ui.comparison_run import Progress, prepared
from ui.errors import shown
from ui.live_view import LiveView, Shown, beside, figure_slot, finding, one_of, whole_number, words_slot
from ui.long_run import Report, long_run
from ui.registry import Registry
from ui.running import Runs
from ui.site_actions import all_layers, site_actions

if TYPE_CHECKING:
    from analysis.sensitivity import FrontTable, SensitivityTable
    from qvd_core.allocation import Allocation
    from qvd_core.calibration.statistics import Statistics
    from qvd_core.models.loader import VideoModel
    from qvd_core.sensitivity import Sensitivity

DEFAULT = CATALOG["animatediff-mini"]
COSTS = [("size of weights", "bytes"), ("bit operations", "bops")]
WIDTHS = {"w8a8": (8, 8), "w6a6": (6, 6), "w4a8": (4, 8), "w4a6": (4, 6), "w4a4": (4, 4)}
MEASURED_CALLS = 2
FRONT_POINTS = 101
ABOUT = (
    "Some layers bear few bits, others do not. Choose a budget: the layers that suffer least give up bits first, and"
    " the button below makes a recipe of that."
)
SOURCES = {"proxy": "estimated from statistics", "scaled": "estimated, and scaled by the measurement"}


def sensitivity_tab(registry: Registry, runs: Runs, model_name: gr.State, recipe: gr.State, tab: gr.Tab) -> None:
    """Build the tab; it follows both states."""
    gr.HTML(panels.note(ABOUT), elem_classes="qvd-flush")
    with gr.Row():
        cost = gr.Radio(COSTS, value="bytes", label="Budget of", min_width=220, elem_id="sensitivity-cost")
        budget = gr.Slider(5, 100, 40, step=1, label="At most this share of fp16, in %", elem_id="sensitivity-budget")
        bits = gr.Radio(list(WIDTHS), value="w4a8", label="Layers shown at", min_width=260, elem_id="sensitivity-bits")
    controls = {"cost": cost, "budget": budget, "bits": bits}
    slots = words_slot("sentence") + words_slot("cards") + beside(figure_slot("front"), figure_slot("layers"))
    slots += words_slot("trust") + words_slot("roles") + words_slot("source")
    view = LiveView(registry, "sensitivity-view", slots, lambda *asked: _answer(registry, *asked))
    apply = gr.Button("Use these bits as the recipe", variant="primary", elem_id="sensitivity-apply")
    layer = all_layers(registry, model_name, "sensitivity-layer")
    site_actions(registry, model_name, recipe, layer)
    measured = gr.State(0)
    long_run(
        runs,
        "sensitivity",
        "Measure every layer alone (a minute or two)",
        [model_name, recipe, bits, measured],
        lambda report, *values: _measure(registry, report, *values),
        [measured],
        lambda count: [count],
    )

    @shown
    def use(name: str, current: Recipe, kind: str, percent: float) -> Recipe:
        model = registry.model(name)
        sensitivity = _sensitivity(registry, model, _base(current))
        return _within(model, _calibrated(registry, model), sensitivity, kind, percent)[1].recipe

    def picked(event: gr.EventData) -> Any:
        return event.name if getattr(event, "name", None) else gr.skip()

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    apply.click(use, [model_name, recipe, cost, budget], recipe, **quiet)
    view.component.pick(picked, None, layer, **quiet)
    view.follow(model_name, recipe, controls, tab.select, measured.change)


def _base(recipe: Recipe) -> Recipe:
    """The named recipe this one came from: exceptions of its own would be fixed, and nothing left to choose."""
    return RECIPES.get(recipe.name.partition("+")[0], recipe)


def _answer(
    registry: Registry, model: VideoModel, recipe: Recipe, choices: dict[str, Any]
) -> Mapping[str, Shown | str]:
    from analysis.architecture import in_words
    from analysis.figures import sensitivity as figures
    from analysis.sensitivity import bits_by_role, sensitivity_table

    kind = one_of(choices, "cost", [value for _, value in COSTS])
    width = WIDTHS[one_of(choices, "bits", WIDTHS)]
    percent = whole_number(choices, "budget", 5, 100)
    base = _base(recipe)
    statistics = _calibrated(registry, model)
    sensitivity = _sensitivity(registry, model, base)
    front, found = _within(model, statistics, sensitivity, kind, percent)
    proxy = _proxy(statistics, model, base)
    layers = sensitivity_table(model.sites, width, proxy, registry.measured(model, base))
    whole = _cost_in_fp16(model, statistics, kind)
    rows = [(role.replace("_", " "), bits) for role, bits in bits_by_role(model.sites, found)]
    bops = "unknown" if found.bops is None else in_words(found.bops)
    return {
        "sentence": finding(f"{_promise(front, found, base, percent, whole)} Errors are {SOURCES[sensitivity.kind]}."),
        "cards": panels.cards(
            [
                ("Weights, computed", in_words(found.bytes, "B"), "codes, scales and what stays in floating point"),
                ("Bit operations", bops, "of one denoiser call, computed"),
                (
                    "Summed error",
                    f"{found.error:.2e}",
                    "predicted: the sum of what layers cost alone",
                ),
            ]
        ),
        "front": Shown(figures.front(front), front),
        "layers": Shown(figures.layers(layers), layers),
        "trust": panels.note(_trust(layers)),
        "roles": panels.table(("Role", "Bits (layers)"), rows),
        "source": panels.note(
            "Errors of single layers are taken to add up (as in HAWQ-V2 and HAWQ-V3), which holds while they are small:"
            " compare the result with its rivals in the Compare tab. Exceptions of the recipe's method are kept, your"
            " own are replaced."
        ),
    }


def _trust(layers: SensitivityTable) -> str:
    """How far the estimate can be believed."""
    what = (
        "The estimate is the error a layer makes in its own output; what the rest of the network makes of that error"
        " differs between layers by orders of magnitude, so the estimate orders layers only roughly."
    )
    agreement = layers.agreement
    if agreement is None:
        return (
            f"{what} How roughly is not known yet: the button at the end measures it, by running the denoiser with one"
            " layer quantized at a time, and from then on the budget goes by that."
        )
    return (
        f"{what} Against the measurement, on the same layers at the bits shown, the correlation of the logarithms is"
        f" {number(agreement)} (1: the same order; 0: none). The budget goes by the measurement."
    )


def _promise(front: FrontTable, found: Allocation, base: Recipe, percent: int, whole: float) -> str:
    from analysis.architecture import in_words

    share = front.chosen_cost / whole
    cost = in_words(front.chosen_cost, "B of weights" if front.cost == "bytes" else "bit operations per call")
    if share > percent / 100:
        return (
            f"At most {percent} % of fp16 cannot be reached: shown is the cheapest way to give each layer of"
            f" {base.name} its bits, {cost}, {share:.0%} of fp16."
        )
    return (
        f"Within {percent} % of fp16, these are the bits of each layer of {base.name} whose summed error is least:"
        f" {cost}, {share:.0%} of fp16."
    )


def _sensitivity(registry: Registry, model: VideoModel, base: Recipe) -> Sensitivity:
    """The estimate, scaled by a measurement once there is one."""
    measured = registry.measured(model, base)
    proxy = _proxy(_calibrated(registry, model), model, base)
    return proxy if measured is None else _scaled(proxy, measured)


def _calibrated(registry: Registry, model: VideoModel) -> Statistics:
    statistics = registry.statistics(model)
    if statistics is None:
        raise CalibrationError(
            f"{model.spec.name} has not been calibrated. Generate once in the Compare tab with a recipe of static"
            " ranges, such as minmax-w8a8: it calibrates first. Then come back here."
        )
    return statistics


@remembered(16)
def _proxy(statistics: Statistics, model: VideoModel, base: Recipe) -> Sensitivity:
    from qvd_core.sensitivity import proxy_sensitivity

    return proxy_sensitivity(model, base, statistics)


@remembered(4)
def _scaled(proxy: Sensitivity, measured: Sensitivity) -> Sensitivity:
    from qvd_core.sensitivity import scaled_sensitivity

    return scaled_sensitivity(proxy, measured)


def _within(
    model: VideoModel, statistics: Statistics, sensitivity: Sensitivity, kind: str, percent: float
) -> tuple[FrontTable, Allocation]:
    """The front, and the dearest recipe on it that costs at most this share of fp16; the cheapest if none does."""
    table, front = _front(statistics, model, sensitivity, kind)
    budget = percent / 100 * _cost_in_fp16(model, statistics, kind)
    affordable = max(0, int(np.searchsorted(table.costs, budget, side="right")) - 1)
    return table.showing(front[affordable]), front[affordable]


def _cost_in_fp16(model: VideoModel, statistics: Statistics, kind: str) -> float:
    costs = site_costs(model.sites, Recipe("fp16", None, None), statistics.macs, model.spec.steps)
    return sum(cost.bytes_before if kind == "bytes" else cost.bops_before or 0 for cost in costs)


@remembered(16)
def _front(
    statistics: Statistics, model: VideoModel, sensitivity: Sensitivity, kind: str
) -> tuple[FrontTable, list[Allocation]]:
    from analysis.sensitivity import front_table
    from qvd_core.allocation import pareto_front

    front = pareto_front(
        model.sites, sensitivity, statistics.macs, cost=kind, points=FRONT_POINTS, steps=model.spec.steps
    )
    return front_table(front, front[-1], kind), front


def _measure(registry: Registry, report: Report, name: str, recipe: Recipe, bits: str, count: int) -> int:
    from qvd_core.sensitivity import measured_sensitivity

    base = _base(recipe)
    model, settings = prepared(registry, name, base, DEFAULT.example_prompts[0], 0, None, None, report)

    def called(done: int, total: int) -> None:
        report(Progress(f"One layer at a time: call {done} of {total}", done / total))

    statistics = registry.statistics(model)
    found = measured_sensitivity(
        model, base, statistics, settings, [WIDTHS[bits]], calls=MEASURED_CALLS, on_call=called
    )
    registry.keep_measured(model, base, found)
    return count + 1
