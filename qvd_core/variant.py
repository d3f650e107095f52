"""From a model and a recipe to a quantized variant that lives beside it.

A variant is a copy of the denoiser's structure that shares every tensor it does not quantize. Building
one costs its codes and their dequantized weights; dropping it restores nothing because nothing was
changed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import CalibrationError, RecipeError, memory_errors
from qvd_core.layers.quantized import DynamicPerToken, QuantizedLayer, StaticPerTensor
from qvd_core.models.loader import VideoModel
from qvd_core.models.sites import Site
from qvd_core.recipe import ActivationFormat, Recipe


@dataclass(frozen=True, eq=False)
class Variant:
    """A quantized denoiser beside its model.

    Attributes:
        model: what it was made from.
        recipe: how.
        denoiser: drop-in replacement of the model's denoiser.
        engine: "simulate": integer codes, computed with in floating point.
    """

    model: VideoModel
    recipe: Recipe
    denoiser: nn.Module
    engine: str = "simulate"


def quantize(model: VideoModel, recipe: Recipe, statistics: Statistics | None = None) -> Variant:
    """Build the variant of `model` that `recipe` describes.

    Args:
        model: left untouched.
        recipe: what to do at each site.
        statistics: input ranges from `calibrate`; needed where inputs are quantized on a static grid.

    Raises:
        RecipeError: an override matches no site of this model.
        CalibrationError: statistics are needed and absent, of another model, or silent about a site.
        OutOfMemory: the codes do not fit the device.
    """
    check_overrides(model, recipe)
    if statistics is not None:
        statistics.check_model(model.spec.name, model.fingerprint)
    with memory_errors(f"the {recipe.name} variant of {model.spec.name}", "Drop another variant first."):
        denoiser = share_structure(model.denoiser)
        for site in model.sites:
            weights, activations = recipe.formats(site.name, site.role)
            if weights is None and activations is None:
                continue
            original: Any = denoiser.get_submodule(site.name)
            layer = QuantizedLayer(
                original, site.kind, weights, _input_quantizer(site, activations, statistics, recipe)
            )
            parent, _, child = site.name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, layer.to(original.weight.device))
    return Variant(model, recipe, denoiser.eval())


def share_structure(module: nn.Module) -> nn.Module:
    """A copy of `module`'s tree of submodules that shares all its parameters and buffers."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def check_overrides(model: VideoModel, recipe: Recipe) -> None:
    """Refuse an override that would silently do nothing.

    Raises:
        RecipeError: it matches no site; the message lists the model's roles.
    """
    for override in recipe.overrides:
        if not any(override.matches(site.name, site.role) for site in model.sites):
            roles = ", ".join(sorted({site.role for site in model.sites}))
            raise RecipeError(
                f"No site of {model.spec.name} matches {override.sites!r}; use a module path or a role: {roles}."
            )


def _input_quantizer(
    site: Site, form: ActivationFormat | None, statistics: Statistics | None, recipe: Recipe
) -> nn.Module | None:
    if form is None:
        return None
    if form.range == "dynamic_per_token":
        return DynamicPerToken(form, site.kind)
    if statistics is None:
        raise CalibrationError(
            f"{recipe.name} quantizes inputs on static grids, which need calibrated ranges:"
            " pass statistics=calibrate(model, prompts), or use a dynamic recipe."
        )
    if site.name not in statistics.low:
        raise CalibrationError(f"The statistics say nothing about {site.name}, which calibration never ran.")
    return StaticPerTensor(*statistics.tensor_range(site.name), form)
