"""What the views of the tab "Temporal" show, from what its controls say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.memory import remembered
from analysis.methods import unlike_the_figure
from qvd_core.errors import RecipeError
from qvd_core.formats import ACTIVATION_BITS, HTDQ, ActivationFormat
from qvd_core.recipe import Recipe
from ui import panels
from ui.live_view import Shown, finding, one_of, whole_number

if TYPE_CHECKING:
    from analysis.htdq import HTDQTable
    from analysis.temporal import TemporalTable
    from qvd_core.models.loader import VideoModel

MOST_STEPS = 100
FORMS = [
    ("H1: α multiplies the logarithm", "H1"),
    ("H2: α inside the logarithm", "H2"),
    ("H3: α scales the range", "H3"),
    ("port: base 2, no α", "port"),
]


def _asked(choices: Mapping[str, Any]) -> tuple[int, int, HTDQ]:
    """Steps, bits and HTDQ as the controls say."""
    steps = whole_number(choices, "steps", 2, MOST_STEPS)
    return steps, whole_number(choices, "bits", ACTIVATION_BITS[0], ACTIVATION_BITS[-1]), method_of(choices)


def method_of(choices: Mapping[str, Any]) -> HTDQ:
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


def temporal(model: VideoModel, recipe: Recipe, choices: dict[str, Any]) -> Mapping[str, Shown | str]:
    """The features on both grids, the search of α and what it gained."""
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


def similarities(model: VideoModel, recipe: Recipe, choices: dict[str, Any]) -> Mapping[str, Shown | str]:
    """How alike steps are, before and after either grid."""
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
