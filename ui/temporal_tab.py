"""Tab "Temporal": how temporal features are distributed over the steps, and what two grids make of them.

They depend on the step only, so everything here is exact and needs neither a video nor calibration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from analysis.memory import remembered
from analysis.methods import unlike_the_figure
from qvd_core.errors import RecipeError
from qvd_core.formats import ACTIVATION_BITS, HTDQ, ActivationFormat
from qvd_core.models.catalog import CATALOG
from qvd_core.recipe import Recipe
from ui import panels
from ui.errors import shown
from ui.live_view import LiveView, Shown, beside, figure_slot, finding, one_of, whole_number, words_slot
from ui.naming import named
from ui.registry import Registry

if TYPE_CHECKING:
    from analysis.htdq import HTDQTable
    from analysis.temporal import TemporalTable
    from qvd_core.models.loader import VideoModel

MOST_STEPS = 100
DEFAULT_STEPS = CATALOG["animatediff-mini"].steps
ABOUT = (
    "Temporal features tell the layers which denoising step it is. A few of their values are far larger than all"
    " others, so a uniform grid that spans them rounds many others to zero, and steps begin to look alike. HTDQ, QVD's"
    " remedy, uses a logarithmic grid (HiDi-TQ), fine near zero and coarse far from it. Its relaxation coefficient α"
    " says how fine; the one with the least K is taken, which weighs the rounding error against how well steps can"
    " still be told apart (TDScore). The fewer the bits, the more it matters: try 4."
)
FORMS = [
    ("H1: α multiplies the logarithm", "H1"),
    ("H2: α inside the logarithm", "H2"),
    ("H3: α scales the range", "H3"),
    ("port: base 2, no α", "port"),
]


def temporal_tab(registry: Registry, model_name: gr.State, recipe: gr.State, tab: gr.Tab) -> None:
    """Build the tab inside `tab`; it follows the model, and its controls follow the recipe, also before it opens."""
    gr.HTML(panels.note(ABOUT), elem_classes="qvd-flush")
    with gr.Row():
        steps = gr.Slider(
            2, MOST_STEPS, DEFAULT_STEPS, step=1, label="Denoising steps", min_width=240, elem_id="temporal-steps"
        )
        bits = gr.Slider(
            ACTIVATION_BITS[0],
            ACTIVATION_BITS[-1],
            8,
            step=1,
            label="Bits of both grids",
            min_width=240,
            elem_id="temporal-bits",
        )
    with gr.Row():
        form = gr.Dropdown(FORMS, value="H1", label="HiDi-TQ", min_width=240, elem_id="temporal-form")
        search = gr.Checkbox(True, label="Search α for the least K", elem_classes="qvd-wide", elem_id="temporal-search")
        coefficient = gr.Slider(
            -2, 6, 0, step=0.05, label="α, if not searched (log₂)", min_width=240, elem_id="temporal-coefficient"
        )
    with gr.Row():
        weight = gr.Slider(
            0, 10, 1, step=0.1, label="λ: weight of TDScore in K", min_width=240, elem_id="temporal-weight"
        )
        radius = gr.Slider(
            1, 8, 2, step=1, label="Radius of TDScore, in steps", min_width=240, elem_id="temporal-radius"
        )
        sign = gr.Checkbox(
            True, label="The sign takes one of the bits", elem_classes="qvd-wide", elem_id="temporal-sign"
        )
    controls = {
        "steps": steps,
        "bits": bits,
        "form": form,
        "search": search,
        "coefficient": coefficient,
        "weight": weight,
        "radius": radius,
        "sign": sign,
    }
    slots = (
        words_slot("sentence")
        + figure_slot("distribution")
        + words_slot("cards")
        + words_slot("htdq")
        + beside(figure_slot("staircases", 320), figure_slot("codes", 320))
        + figure_slot("search", 320)
        + words_slot("scores")
    )
    view = LiveView(registry, "temporal-view", slots, _temporal)
    slots = beside(figure_slot("full", 300), figure_slot("uniform", 300), figure_slot("logarithmic", 300))
    similarities = LiveView(registry, "similarity-view", slots + words_slot("source"), _similarities)
    use = gr.Button("Use this HTDQ in the recipe", size="sm", elem_id="temporal-use")

    @shown
    def follow_model(name: str) -> Any:
        return min(registry.model(name).spec.steps, MOST_STEPS) if name else gr.skip()

    @shown
    def follow_recipe(name: str, current: Recipe) -> list[Any]:
        # Waits for a model that is loading: who opens the page by a link comes before it is there.
        width = _recipe_bits(registry.model(name), current) if name else gr.skip()
        method = current.temporal
        if not isinstance(method, HTDQ):
            return [width, *[gr.skip()] * 6]
        return [
            width,
            "port" if method.port else method.form,
            method.coefficient is None,
            gr.skip() if method.coefficient is None else math.log2(method.coefficient),
            method.discriminability_weight,
            method.radius,
            method.sign_inside,
        ]

    @shown
    def use_in_recipe(current: Recipe, *values: Any) -> Recipe:
        method = _method(dict(zip(controls, values, strict=True)))
        if isinstance(current.temporal, HTDQ):
            method = dataclasses.replace(method, centred=current.temporal.centred)
        return named(dataclasses.replace(current, temporal=method))

    quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
    model_name.change(follow_model, model_name, steps, **quiet)
    followers = [bits, form, search, coefficient, weight, radius, sign]
    gr.on([model_name.change, recipe.change], follow_recipe, [model_name, recipe], followers, **quiet)
    use.click(use_in_recipe, [recipe, *controls.values()], recipe, show_progress="hidden", api_visibility="private")
    for one in (view, similarities):
        one.follow(model_name, recipe, controls, tab.select)


def _recipe_bits(model: VideoModel, recipe: Recipe) -> int:
    """What the recipe gives temporal features; 8 where it leaves them in floating point."""
    sites = [site for site in model.sites if site.role == "temporal_features"]
    form = recipe.formats(sites[0].name, sites[0].role)[1] if sites else None
    return 8 if form is None else form.bits


def _asked(choices: Mapping[str, Any]) -> tuple[int, int, HTDQ]:
    """Steps, bits and HTDQ as the controls say."""
    steps = whole_number(choices, "steps", 2, MOST_STEPS)
    return steps, whole_number(choices, "bits", ACTIVATION_BITS[0], ACTIVATION_BITS[-1]), _method(choices)


def _method(choices: Mapping[str, Any]) -> HTDQ:
    """HTDQ as the controls say."""
    form = one_of(choices, "form", [value for _, value in FORMS])
    flags = {name: choices.get(name) for name in ("search", "sign")}
    power, weight = choices.get("coefficient"), choices.get("weight")
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise RecipeError(f"{flags} holds something that is neither true nor false.")
    if isinstance(power, bool) or not isinstance(power, (int, float)) or not -10 <= power <= 9:
        raise RecipeError(f"coefficient = {power!r} is out of range; choose -10 to 9, a power of two.")
    searched = flags["search"] or form == "port"
    return HTDQ(
        form="H1" if form == "port" else form,
        sign_inside=flags["sign"] or form == "port",
        port=form == "port",
        coefficient=None if searched else 2.0**power,
        discriminability_weight=weight,  # type: ignore[arg-type]  # checked there
        radius=whole_number(choices, "radius", 1, 100),
    )


def _temporal(model: VideoModel, recipe: Recipe, choices: dict[str, Any]) -> Mapping[str, Shown | str]:
    from analysis.figures import temporal as figures
    from analysis.htdq import htdq_table, in_words

    steps, bits, method = _asked(choices)
    sentence, plain = _without_htdq(model, steps, bits)
    table = htdq_table(model, steps, bits, method)
    site = next(site for site in model.sites if site.role == "temporal_features")
    caveat = unlike_the_figure(model, recipe, site, ActivationFormat(bits))
    return {
        "sentence": finding(f"{sentence} {caveat}".strip()),
        **plain,
        "htdq": finding(in_words(table)),
        "staircases": Shown(figures.staircases(table), table.stairs_columns()),
        "codes": Shown(figures.code_use(table), table.use_columns()),
        "search": Shown(figures.search(table), table) if table.search is not None else "",
        "scores": _score_cards(table),
    }


def _similarities(model: VideoModel, recipe: Recipe, choices: dict[str, Any]) -> Mapping[str, Shown | str]:
    from analysis.export import tidy
    from analysis.figures.temporal import similarity
    from analysis.htdq import htdq_table

    steps, bits, method = _asked(choices)
    table = htdq_table(model, steps, bits, method)
    matrices = {
        "full": (table.similarity, "Full precision"),
        "uniform": (table.uniform.similarity, f"{bits}-bit uniform grid"),
        "logarithmic": (table.logarithmic.similarity, f"{bits}-bit HiDi-TQ"),
    }
    lowest = min(float(matrix.min()) for matrix, _ in matrices.values())
    figures = {
        slot: Shown(similarity(matrix, name, lowest), tidy(matrix, "step", "other_step", "cosine"))
        for slot, (matrix, name) in matrices.items()
    }
    return {**figures, "source": panels.note(SOURCE)}


@remembered(32)
def _without_htdq(model: VideoModel, steps: int, bits: int) -> tuple[str, dict[str, Shown | str]]:
    """What most controls leave as it is: the features and the uniform grid in words, in a figure and in numbers."""
    from analysis.figures.temporal import distribution
    from analysis.htdq import features_of
    from analysis.temporal import in_words, temporal_table

    table = temporal_table(features_of(model, steps), bits)
    return in_words(table), {"distribution": Shown(distribution(table), table), "cards": _shape_cards(table)}


SOURCE = (
    "Temporal features are the inputs of every time_emb_proj (QVD, arXiv 2407.11585, section 4.1): SiLU of the time"
    " embedding, one per denoising step, the same in every layer, for every prompt and seed. They are enumerated"
    " exactly, without sampling. The uniform grid is affine and spans all steps, as a static quantizer's does. HiDi-TQ"
    " and K are our reconstruction of what the paper describes; qvd_core/methods/htdq.py says which choice was made"
    " where."
)


def _shape_cards(table: TemporalTable) -> str:
    from analysis.temporal import moments

    shape = moments(table.values)
    return panels.cards(
        [
            ("Skewness", _number(shape.skewness), "0 if symmetric; positive: the tail is on the right"),
            ("Excess kurtosis", _number(shape.excess_kurtosis), "0 for a normal distribution; higher: heavier tails"),
            ("Largest over median", f"{_number(shape.largest_over_median)}×", "of the magnitudes"),
            (
                "Rounded to zero",
                f"{table.zero_share:.1%}",
                f"of {table.values.size:,} values, uniform, {table.bits} bits",
            ),
        ]
    )


def _score_cards(table: HTDQTable) -> str:
    flat, log = table.uniform, table.logarithmic
    return panels.cards(
        [
            ("K", f"{flat.k:.2g} → {log.k:.2g}", "uniform → HiDi-TQ; 0 is exact, lower is better"),
            ("Squared error", f"{flat.l2:.2g} → {log.l2:.2g}", "relative, uniform → HiDi-TQ"),
            ("TDScore", f"{flat.td_score:.3g} → {log.td_score:.3g}", f"full precision has {table.td_score:.3g}"),
            ("Codes repeated", f"{flat.repeated:.0%} → {log.repeated:.0%}", "by the next step, uniform → HiDi-TQ"),
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.2f}".replace("-", "−") if math.isfinite(value) else "undefined"
