"""QVD Studio's library: load, calibrate, quantize, generate, compare.

    from qvd_core import load, calibrate, quantize, generate, compare, default_settings, get_recipe

    model = load("animatediff-mini")
    statistics = calibrate(model, ["a red circle moving left on a striped gray background"])
    variant = quantize(model, get_recipe("minmax-w4a8"), statistics)  # or in_integers(...) of it
    settings = default_settings(model, "a blue ring growing on a plain white background")
    scores = compare(generate(model, settings), generate(variant, settings))

The verbs are imported when first used, so that `import qvd_core` costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvd_core.allocation import Allocation, allocate, pareto_front
    from qvd_core.calibration.calibrate import calibrate, calibration_prompts, embedded_statistics
    from qvd_core.calibration.statistics import Statistics
    from qvd_core.checkpoint import load_quantized, save
    from qvd_core.engines.integer import in_integers
    from qvd_core.evaluation import evaluate
    from qvd_core.formats import Override
    from qvd_core.models.catalog import CATALOG, ModelSpec
    from qvd_core.models.loader import VideoModel, load
    from qvd_core.recipe import RECIPES, Recipe, get_recipe
    from qvd_core.sampling import Clip, Settings, StepInfo, default_settings, generate
    from qvd_core.scores import Scores, compare
    from qvd_core.sensitivity import Sensitivity, measured_sensitivity, proxy_sensitivity, scaled_sensitivity
    from qvd_core.table import tabulate
    from qvd_core.variant import Placement, Variant, quantize

__version__ = "0.1.0"

_HOMES = {
    "load": "models.loader",
    "VideoModel": "models.loader",
    "CATALOG": "models.catalog",
    "ModelSpec": "models.catalog",
    "calibrate": "calibration.calibrate",
    "calibration_prompts": "calibration.calibrate",
    "embedded_statistics": "calibration.calibrate",
    "Statistics": "calibration.statistics",
    "quantize": "variant",
    "save": "checkpoint",
    "load_quantized": "checkpoint",
    "Variant": "variant",
    "Placement": "variant",
    "in_integers": "engines.integer",
    "RECIPES": "recipe",
    "Recipe": "recipe",
    "Override": "formats",
    "get_recipe": "recipe",
    "generate": "sampling",
    "default_settings": "sampling",
    "Settings": "sampling",
    "StepInfo": "sampling",
    "Clip": "sampling",
    "compare": "scores",
    "Scores": "scores",
    "evaluate": "evaluation",
    "Sensitivity": "sensitivity",
    "proxy_sensitivity": "sensitivity",
    "measured_sensitivity": "sensitivity",
    "scaled_sensitivity": "sensitivity",
    "allocate": "allocation",
    "pareto_front": "allocation",
    "Allocation": "allocation",
    "tabulate": "table",
}

__all__ = [
    "CATALOG",
    "RECIPES",
    "Allocation",
    "Clip",
    "ModelSpec",
    "Override",
    "Placement",
    "Recipe",
    "Scores",
    "Sensitivity",
    "Settings",
    "Statistics",
    "StepInfo",
    "Variant",
    "VideoModel",
    "allocate",
    "calibrate",
    "calibration_prompts",
    "compare",
    "default_settings",
    "embedded_statistics",
    "evaluate",
    "generate",
    "get_recipe",
    "in_integers",
    "load",
    "load_quantized",
    "measured_sensitivity",
    "pareto_front",
    "proxy_sensitivity",
    "quantize",
    "save",
    "scaled_sensitivity",
    "tabulate",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"qvd_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qvd_core' has no attribute {name!r}")
