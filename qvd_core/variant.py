"""From a model and a recipe to a quantized variant that lives beside it.

A variant is a copy of the denoiser's structure that shares every tensor it does not quantize. Building
one costs its codes and their dequantized weights; dropping it restores nothing because nothing was
changed. Channels are transformed first, then weights quantized, then grids fitted to what inputs have
become: the order in which each sees what it will meet.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.calibration.ranges import input_range
from qvd_core.calibration.statistics import CalibrationRun, Statistics
from qvd_core.calibration.temporal_features import sampler_timesteps, temporal_features
from qvd_core.errors import CalibrationError, memory_errors
from qvd_core.formats import HTDQ, ActivationFormat, ChannelBalancing, ShiftAndScale, Tabulated
from qvd_core.layers.clock import StepClock
from qvd_core.layers.folded_norm import fold_into_norm
from qvd_core.layers.inputs import (
    DynamicPerToken,
    DynamicSplit,
    Logarithmic,
    OncePerInput,
    StaticPerFrame,
    StaticPerStep,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.methods.at_sites import balanced, pads_with_zeros, shifted_and_scaled, transformed_inputs
from qvd_core.methods.htdq import CoefficientSearch, search_coefficient
from qvd_core.methods.scri import ThresholdSearch
from qvd_core.models.loader import VideoModel
from qvd_core.models.sites import Site, find_inputs, shortcut_split
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.logarithmic import log_grid, port_grid
from qvd_core.recipe import Recipe
from qvd_core.recipe_checks import check_recipe


@dataclass(frozen=True)
class Placement:
    """How one layer of a variant is computed.

    Attributes:
        engine: "int8", "table" (looked up by step), or "floating point".
        reason: why it is not int8; empty if it is.
    """

    engine: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Variant:
    """A quantized denoiser beside its model.

    Attributes:
        model: what it was made from.
        recipe: how.
        denoiser: drop-in replacement of the model's denoiser.
        engine: "simulate": integer codes, computed with in floating point; "int8": see `engines.integer`.
        placements: by site, how an integer engine computes it; empty for "simulate".
        transforms: by site, what is done to the channels of its input.
        folded: the sites among them whose transformation the preceding norm makes, at no cost.
        thresholds: by the first site that reads an input, how its threshold was found.
        coefficients: by activation bits, how the relaxation coefficient of HTDQ was found.
        frames: the clip length it has per-frame grids for; None if it has none.
        clock: what ties some layers to the steps of the calibrated sampler; None if nothing does.
        search_seconds: measured time of all searches: thresholds, coefficients, ranges.
        calibration: the run its statistics came from; None without statistics.
    """

    model: VideoModel
    recipe: Recipe
    denoiser: nn.Module
    engine: str = "simulate"
    placements: dict[str, Placement] = field(default_factory=dict)
    transforms: dict[str, ChannelTransform] = field(default_factory=dict)
    folded: frozenset[str] = frozenset()
    thresholds: dict[str, ThresholdSearch] = field(default_factory=dict)
    coefficients: dict[int, CoefficientSearch] = field(default_factory=dict)
    frames: int | None = None
    clock: StepClock | None = None
    search_seconds: float = 0.0
    calibration: CalibrationRun | None = None

    @property
    def steps(self) -> int:
        """Length of the sampler it was made for."""
        return self.model.spec.steps if self.calibration is None else self.calibration.steps

    @property
    def arithmetic(self) -> str:
        """How it computes, in words that belong beside every number it gives."""
        if self.engine == "simulate":
            return "simulated: integer codes, computed with in floating point; no speed claim"
        count = Counter(placement.engine for placement in self.placements.values())
        return (
            f"{self.engine}: {count[self.engine]} layers in integers, {count['table']} looked up by step,"
            f" {count['floating point']} in floating point; seconds are measured"
        )


def quantize(model: VideoModel, recipe: Recipe, statistics: Statistics | None = None) -> Variant:
    """Build the variant of `model` that `recipe` describes.

    Args:
        model: left untouched.
        recipe: what to do at each site.
        statistics: of the inputs, from `calibrate`; needed for static grids and channel transformations.
            Where a recipe treats steps one by one, those are the steps of the calibrated sampler.

    Raises:
        RecipeError: a pattern matches no site of this model.
        CalibrationError: statistics are needed and absent, of another model, or silent about a site; or
            the recipe treats temporal features and this model has none that are known.
        OutOfMemory: the codes do not fit the device.
    """
    check_recipe(model, recipe, statistics)
    with memory_errors(f"the {recipe.name} variant of {model.spec.name}", "Drop another variant first."):
        return _Builder(model, recipe, statistics).build()


class _Builder:
    """The steps of building one variant, and what they share."""

    def __init__(self, model: VideoModel, recipe: Recipe, statistics: Statistics | None):
        self.model, self.recipe, self.statistics = model, recipe, statistics
        self.sites = {site.name: site for site in model.sites}
        self.denoiser = share_structure(model.denoiser)
        self.inputs = find_inputs(model.denoiser, model.sites)
        self.quantizers: dict[tuple[str, ActivationFormat], nn.Module] = {}
        self.transforms: dict[str, ChannelTransform] = {}
        self.folded: set[str] = set()
        self.frames: int | None = None
        self.thresholds: dict[str, ThresholdSearch] = {}
        self.coefficients: dict[int, CoefficientSearch] = {}

    @functools.cached_property
    def clock(self) -> StepClock:
        timesteps = sampler_timesteps(self.model, self._steps)
        if len(timesteps) != self._steps or len(set(timesteps.tolist())) != self._steps:
            raise CalibrationError(
                f"{self.recipe.name} treats every step by itself, and {type(self.model.pipeline.scheduler).__name__}"
                f" visits {len(timesteps)} timesteps in {self._steps} steps, some of them twice; choose another recipe."
            )
        return StepClock(self.denoiser, timesteps)

    @functools.cached_property
    def features(self) -> Tensor:
        """Temporal features [steps, C] in fp32, on the model's device."""
        return temporal_features(self.model, self._steps).values.to(next(self.model.denoiser.parameters()).device)

    @property
    def _steps(self) -> int:
        return self.model.spec.steps if self.statistics is None else self.statistics.run.steps

    @torch.no_grad()
    def build(self) -> Variant:
        started = time.perf_counter()
        if self.recipe.channels is not None:
            self._transform_channels(self.recipe.channels)
        seconds = time.perf_counter() - started
        for site in self.model.sites:
            weights, activations = self.recipe.formats(site.name, site.role)
            original: Any = self.denoiser.get_submodule(site.name)
            if site.role == "temporal_features" and isinstance(self.recipe.temporal, Tabulated):
                self._replace(site.name, self._tabulated(original))
                continue
            transform = self.transforms.get(site.name)
            if weights is None and activations is None and transform is None:
                continue
            split = shortcut_split(self.model.denoiser, site.name) if self.recipe.split_shortcuts else None
            started = time.perf_counter()
            quantize_input = None if activations is None else self._input_quantizer(site, activations, transform, split)
            seconds += time.perf_counter() - started
            here = transform is not None and site.name not in self.folded
            layer = QuantizedLayer(original, site.kind, weights, quantize_input, transform, here, split)
            self._replace(site.name, layer.to(original.weight.device))
        return Variant(
            self.model,
            self.recipe,
            self.denoiser.eval(),
            transforms=self.transforms,
            folded=frozenset(self.folded),
            thresholds=self.thresholds,
            coefficients=self.coefficients,
            frames=self.frames,
            clock=self.__dict__.get("clock"),  # if any layer has asked for it
            search_seconds=seconds,
            calibration=None if self.statistics is None else self.statistics.run,
        )

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.denoiser.get_submodule(parent), child, module)

    def _transform_channels(self, method: ShiftAndScale | ChannelBalancing) -> None:
        assert self.statistics is not None
        for shared in transformed_inputs(self.model, self.recipe):
            for name in shared.consumers:
                self._statistics_of(self.sites[name])
            if isinstance(method, ChannelBalancing):
                transform = balanced(self.model, self.statistics, shared, method)
            else:
                transform, search = shifted_and_scaled(self.model, self.statistics, shared, self.recipe, method)
                if search is not None:
                    self.thresholds[shared.consumers[0]] = search
            self.transforms |= dict.fromkeys(shared.consumers, transform)
            if shared.norm is not None and fold_into_norm(self.denoiser, shared.norm, transform):
                self.folded.update(shared.consumers)

    def _statistics_of(self, site: Site) -> tuple[Tensor, Tensor]:
        assert self.statistics is not None
        if site.name not in self.statistics.low:
            raise CalibrationError(f"The statistics say nothing about {site.name}, which calibration never ran.")
        return self.statistics.low[site.name], self.statistics.high[site.name]

    def _input_quantizer(
        self, site: Site, form: ActivationFormat, transform: ChannelTransform | None, split: int | None
    ) -> nn.Module:
        """That of `site`, shared with the other readers of its input if they want the same."""
        readers = next(shared.consumers for shared in self.inputs if site.name in shared.consumers)
        alike = [n for n in readers if self.recipe.formats(n, self.sites[n].role)[1] == form]
        if (alike[0], form) not in self.quantizers:
            quantizer = self._new_input_quantizer(site, form, transform, split)
            # Layers that transform their input themselves each make a tensor of their own.
            shared = len(alike) > 1 and (transform is None or site.name in self.folded)
            self.quantizers[alike[0], form] = OncePerInput(quantizer, len(alike)) if shared else quantizer
        return self.quantizers[alike[0], form]

    def _new_input_quantizer(
        self, site: Site, form: ActivationFormat, transform: ChannelTransform | None, split: int | None
    ) -> nn.Module:
        if site.role == "temporal_features" and isinstance(self.recipe.temporal, HTDQ):
            return self._logarithmic(self.recipe.temporal, form.bits)
        if form.range == "dynamic_per_token":
            dynamic = DynamicPerToken(form, site.kind)
            return dynamic if split is None else DynamicSplit(dynamic, split)
        self._statistics_of(site)
        assert self.statistics is not None
        padded = pads_with_zeros(self.denoiser.get_submodule(site.name))
        if split is not None:  # one grid for each part, whatever the others have
            whole = dataclasses.replace(form, range="static_per_tensor")
            parts = [
                input_range(self.statistics, site.name, whole, transform, part, padded)
                for part in (slice(split), slice(split, None))
            ]
            low, high = (torch.cat(ends) for ends in zip(*parts, strict=True))
            return StaticSplit(low, high, form, split, site.in_channels)
        low, high = input_range(self.statistics, site.name, form, transform, includes_zero=padded)
        if form.range == "static_per_step":
            return StaticPerStep(low, high, form, self.clock)
        if len(low) > 1:
            self.frames = len(low)
            return StaticPerFrame(low, high, form)
        return StaticPerTensor(low, high, form)

    def _logarithmic(self, method: HTDQ, bits: int) -> Logarithmic:
        absmax = self.features.abs().max()
        if method.port:
            return Logarithmic(port_grid(absmax, bits))
        if method.coefficient is not None:
            coefficient = method.coefficient
        else:
            if bits not in self.coefficients:
                self.coefficients[bits] = search_coefficient(
                    self.features,
                    bits,
                    form=method.form,
                    sign_inside=method.sign_inside,
                    radius=method.radius,
                    weight=method.discriminability_weight,
                    centred=method.centred,
                )
            coefficient = self.coefficients[bits].coefficient
        alpha = torch.tensor(coefficient, dtype=torch.float64, device=absmax.device)  # as the search had it
        return Logarithmic(log_grid(absmax, alpha, bits, method.form, method.sign_inside))

    def _tabulated(self, layer: Any) -> TabulatedLayer:
        return TabulatedLayer(layer(self.features.to(layer.weight.dtype)), self.clock)


def share_structure(module: nn.Module) -> nn.Module:
    """A copy of `module`'s tree of submodules that shares all its parameters and buffers."""
    return copy.deepcopy(module, shared_tensors(module))


def shared_tensors(module: nn.Module) -> dict[int, Any]:
    """The memo of a deep copy that shares all parameters and buffers of `module`."""
    return {id(t): t for t in (*module.parameters(), *module.buffers())}
