"""Methods in words: short names for menus, and in one sentence each what they do, for people new to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.methods import SCRI_SITES, bound_to_steps, temporal_sites, transformed_sites
from qvd_core.formats import HTDQ, ChannelBalancing, ShiftAndScale, Tabulated
from qvd_core.recipe import Recipe

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel

METHODS: dict[str, tuple[str, str]] = {
    "minmax": ("Min-max", "One grid per layer input, from the smallest to the largest value that calibration saw."),
    "dynamic": ("Dynamic per token", "Every token gets a grid of its own as it arrives; nothing is calibrated."),
    "mse": ("Least error", "One grid per layer input, narrowed to the least rounding error over all steps."),
    "percentile": (
        "Percentile",
        "One grid per layer input, which leaves out the outermost 0.1 % of values at either end.",
    ),
    "smoothquant": (
        "SmoothQuant",
        "Input channels of wide range hand part of it to the weights before both are rounded, in all layers.",
    ),
    "os-plus": (
        "Outlier Suppression+",
        "Before rounding, input channels of all layers are moved to a common centre and the widest are shrunk.",
    ),
    "q-diffusion": (
        "Q-Diffusion",
        "Ranges of least error over all steps alike; where two inputs are concatenated, each part gets its own grid.",
    ),
    "tfmq-dm": (
        "TFMQ-DM",
        "The layers that carry the step get a range for each step. Its tuning of how weights are rounded is left out.",
    ),
    "qvd": (
        "QVD",
        "HTDQ gives temporal features a logarithmic grid; SCRI centres and evens out channels of temporal attention.",
    ),
    "qvd-htdq": ("QVD: HTDQ only", "A logarithmic grid for temporal features; channels stay as they are."),
    "qvd-scri": (
        "QVD: SCRI only",
        "Channels of temporal attention are moved to a common centre and the widest shrunk; no HTDQ.",
    ),
    "qvd-shift": ("QVD: shift only", "Of SCRI only the common centre of channels in temporal attention; no HTDQ."),
    "qvd-scale": ("QVD: scale only", "Of SCRI only the shrinking of wide channels in temporal attention; no HTDQ."),
    "qvd-base": (
        "QVD: neither",
        "QVD's uniform quantizer alone: a grid for each frame, narrowed to the least error.",
    ),
    "tabulated": (
        "Control: tabulated",
        "No method but a control: QVD's uniform quantizer, with the layers that carry the step kept exact in a table.",
    ),
}
"""By method, its name in the menu and its sentence."""

CUSTOM = "As set in the Recipe tab."

RANGES = [
    ("per tensor", "static_per_tensor"),
    ("per frame", "static_per_frame"),
    ("per step", "static_per_step"),
    ("per token", "dynamic_per_token"),
]
RANGE_WORDS = {
    "static_per_tensor": "One range for everything, fixed by calibration.",
    "static_per_frame": "Where a layer sees the frames of a clip one by one, each has a range; one range elsewhere.",
    "static_per_step": "Each step of the calibrated sampler has a range, so clips can be sampled at its steps only.",
    "dynamic_per_token": "Each token's range is found as it arrives; in a convolution, each frame's. No calibration.",
}
SEARCHES = [
    ("extremes", "min_max"),
    ("least error", "mse"),
    ("least error by step", "mse_by_step"),
    ("percentile", "percentile"),
]

TEMPORAL = [
    ("as other inputs", "none"),
    ("HTDQ", "htdq"),
    ("range per step (TFMQ-DM)", "temporal_block"),
    ("tabulated (control)", "tabulated"),
]
TEMPORAL_WORDS = {
    "none": "Rounded like the input of every other layer.",
    "htdq": (
        "HTDQ rounds them on a logarithmic grid, fine near zero where most of their values lie and coarse for the few"
        " large ones, so that neighbouring steps stay distinct."
    ),
    "temporal_block": (
        "All layers between the step and the network's blocks get a range for each step, as in TFMQ-DM, whose tuning"
        " of how weights are rounded is left out."
    ),
    "tabulated": (
        "A control, no method: what these layers give is kept in floating point, in a table with a row for each step."
        " Exact, and bound to the sampler it was made for."
    ),
}

CHANNELS = [
    ("as they are", "none"),
    ("SCRI", "scri"),
    ("Outlier Suppression+", "os_plus"),
    ("balancing", "balancing"),
]
CHANNEL_WORDS = {
    "none": "All channels of an input share its grid as they come; those of narrow range reach few of its levels.",
    "scri": (
        "SCRI moves the input channels of temporal attention to a common centre and shrinks the widest before"
        " rounding, and has the weights undo both, so that each channel reaches more levels of the grid they share."
    ),
    "os_plus": (
        "Input channels are moved to a common centre and the widest shrunk before rounding, and the weights undo both:"
        " what SCRI does, at layers of your choice, in the manner of Outlier Suppression+."
    ),
    "balancing": (
        "Input channels of wide range hand part of it to the weights before both are rounded, as in SmoothQuant and"
        " ViDiT-Q."
    ),
}


def temporal_choice(recipe: Recipe) -> str:
    """Which of `TEMPORAL` the recipe has chosen."""
    return "none" if recipe.temporal is None else recipe.temporal.method


def channel_choice(recipe: Recipe) -> str:
    """Which of `CHANNELS` the recipe has chosen."""
    if isinstance(recipe.channels, ShiftAndScale):
        return "scri" if recipe.channels.sites == SCRI_SITES else "os_plus"
    return "balancing" if isinstance(recipe.channels, ChannelBalancing) else "none"


def temporal_words(recipe: Recipe, model: VideoModel | None) -> str:
    """What the recipe does to temporal features, and in how many layers of `model` (None: not loaded yet)."""
    text = TEMPORAL_WORDS[temporal_choice(recipe)]
    if recipe.temporal is None or model is None:
        return text
    count = len(temporal_sites(model.sites, recipe))
    if count:
        return f"{text} Here: {_layers(count, model)}."
    if not any(site.role == "temporal_features" for site in model.sites):
        return f"{text} Here: none, as no layer of {model.spec.name} is known to take temporal features."
    if isinstance(recipe.temporal, HTDQ):
        return f"{text} Here: none, as the recipe leaves these inputs in floating point."
    return f"{text} Here: none, as the recipe fixes no ranges for these inputs."


def channel_words(recipe: Recipe, model: VideoModel | None) -> str:
    """What the recipe does to channels, and in how many layers of `model`."""
    text = CHANNEL_WORDS[channel_choice(recipe)]
    if recipe.channels is None or model is None:
        return text
    return f"{text} Here: {_layers(len(transformed_sites(model, recipe)), model)}."


def requirements(recipe: Recipe, model: VideoModel | None) -> str:
    """What the recipe needs before and while it runs."""
    text = "Needs calibration." if recipe.needs_statistics else "Needs no calibration."
    if model is None or not bound_to_steps(model.sites, recipe):
        return text
    what = "table holds" if isinstance(recipe.temporal, Tabulated) else "ranges hold"
    return f"{text} Its {what} for the steps of the calibrated sampler only."


def _layers(count: int, model: VideoModel) -> str:
    return f"{count} of the {len(model.sites)} layers of {model.spec.name}"
