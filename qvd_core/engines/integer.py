"""From a simulated variant to one that computes in integers, and what became of every layer.

The time path of a UNet depends on the step alone: the outputs of its quantized layers are looked up, which costs
nothing and is exact. Everything else runs on int8 kernels or, with the reason given, stays as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.calibration.temporal_features import ADDED_EMBEDDINGS, sampler_timesteps
from qvd_core.engines import cpu_int8, cuda_layer
from qvd_core.engines.fused import fused
from qvd_core.engines.int8_layer import SplitLayer, centred_codes
from qvd_core.errors import CalibrationError, EngineError, memory_errors
from qvd_core.formats import Tabulated
from qvd_core.layers.clock import TableClock
from qvd_core.layers.inputs import (
    DynamicSplit,
    GridQuantizer,
    Logarithmic,
    OncePerInput,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import StepTable, TabulatedLayer
from qvd_core.recipe import TIME_PATH
from qvd_core.variant import Placement, Variant, share_structure

ENGINES: dict[str, Any] = {"cpu": cpu_int8, "cuda": cuda_layer}
"""By device, the module with its `unavailable`, `takes`, `Codes` and `Layer`."""


def in_integers(variant: Variant, *, compiled: bool = False) -> Variant:
    """The same variant in integer arithmetic, on the kernels of the device its model is on.

    Args:
        variant: simulated; left untouched, and sharing with the new one all that is not quantized.
        compiled: fuse what is between the kernels by torch.compile, at the first clip; takes a minute or more and
            a C++ compiler, and is then much faster.

    Returns:
        A variant whose `engine` is "int8" and whose `placements` say for every site how it is computed and why.

    Raises:
        EngineError: this device has no int8 kernels worth using; or the variant is none that is simulated.
        OutOfMemory: the weights do not fit.
    """
    if variant.engine != "simulate":
        raise EngineError(f"{variant.recipe.name} computes in {variant.engine} already; pass the simulated variant.")
    engine = ENGINES[variant.model.device.name]
    if reason := engine.unavailable():
        raise EngineError(f"No integer arithmetic here: {reason}. Keep to the simulated variant.")
    with memory_errors(f"the int8 weights of {variant.recipe.name}", "Drop another variant first."):
        return _Converter(variant, engine).convert(compiled)


class _Converter:
    """The steps of one conversion, and what they share."""

    def __init__(self, variant: Variant, engine: Any):
        self.variant, self.engine = variant, engine
        self.denoiser = share_structure(variant.denoiser)
        self.codes: dict[int, nn.Module] = {}

    @torch.no_grad()
    def convert(self, compiled: bool) -> Variant:
        tables = self._time_path()
        placements = {}
        for site in self.variant.model.sites:
            layer: Any = self.denoiser.get_submodule(site.name)
            new, placements[site.name] = self._placed(layer)
            if site.name in tables:
                new, placements[site.name] = tables[site.name], Placement("table", "depends on the step alone")
            elif isinstance(layer, TabulatedLayer):
                placements[site.name] = Placement("table", "the recipe tabulates the time path")
            elif site.role in TIME_PATH and isinstance(self.variant.recipe.temporal, Tabulated):
                placements[site.name] = Placement("table", "only tabulated layers read it")
            if new is not layer:
                parent, _, child = site.name.rpartition(".")
                setattr(self.denoiser.get_submodule(parent), child, new)
        if compiled:
            # Without its hooks, which keep the time of the tables.
            self.denoiser.forward = fused(self.denoiser.forward)
        return dataclasses.replace(self.variant, denoiser=self.denoiser.eval(), engine="int8", placements=placements)

    def _placed(self, layer: Any) -> tuple[nn.Module, Placement]:
        """What takes the place of `layer`, and why."""
        if not isinstance(layer, QuantizedLayer):
            return layer, Placement("floating point", "the recipe leaves it as it is")
        codes = layer.codes
        if codes is None:
            return layer, Placement("floating point", "its weights are in floating point")
        if layer.quantize_input is None:
            return layer, Placement("floating point", "its input is in floating point")
        quantizer = _own(layer.quantize_input)
        if isinstance(quantizer, Logarithmic):
            return layer, Placement("floating point", "its input is on a logarithmic grid")
        form: Any = quantizer.quantizer if isinstance(quantizer, DynamicSplit) else quantizer
        bits = (form.code_max - form.code_min).bit_length()
        if bits > 8:
            return layer, Placement("floating point", f"its input has {bits} bits, more than int8 holds")
        assert layer.weight_zero_point is not None
        products = codes[0].numel()
        zero_points = centred_codes(codes, layer.weight_zero_point) is None
        reason = self.engine.takes(layer.kind, getattr(layer, "groups", 1), products, zero_points)
        if reason is not None:
            return layer, Placement("floating point", reason)
        return self._int8(layer, quantizer), Placement("int8", "")

    def _int8(self, layer: QuantizedLayer, quantizer: nn.Module) -> nn.Module:
        if not isinstance(quantizer, (StaticSplit, DynamicSplit)):
            assert isinstance(quantizer, GridQuantizer)
            whole: nn.Module = self.engine.Layer(layer, self._codes(layer.quantize_input), quantizer)
            return whole
        split = quantizer.split
        parts = [slice(split), slice(split, None)]
        first, rest = (
            self.engine.Layer(layer, self.engine.Codes(q), q, channels=part, biased=not number)
            for number, (part, q) in enumerate(zip(parts, quantizer.parts(), strict=True))
        )
        return SplitLayer(first, rest, split)

    def _codes(self, quantize_input: Any) -> nn.Module:
        """Codes of one input, shared by the readers that share its quantizer."""
        if id(quantize_input) not in self.codes:
            quantizer: Any = _own(quantize_input)
            codes: nn.Module = self.engine.Codes(quantizer)
            if isinstance(quantize_input, OncePerInput):
                codes = OncePerInput(codes, quantize_input.readers)
            self.codes[id(quantize_input)] = codes
        return self.codes[id(quantize_input)]

    def _time_path(self) -> dict[str, nn.Module]:
        """Tables of the quantized layers of the time path, by site; none where they depend on more than the step."""
        model, variant = self.variant.model, self.variant
        sites = [s.name for s in model.sites if s.role in TIME_PATH]
        layers = [name for name in sites if isinstance(self.denoiser.get_submodule(name), QuantizedLayer)]
        denoiser: Any = self.denoiser
        added = any(getattr(denoiser, name, None) is not None for name in ADDED_EMBEDDINGS)
        if not layers or added:
            return {}
        try:
            timesteps = sampler_timesteps(model, variant.steps)
        except CalibrationError:  # depend on more than their number
            return {}
        if len(set(timesteps.tolist())) != len(timesteps):
            return {}
        outputs = self._outputs_by_step(layers, timesteps)
        clock = TableClock(self.denoiser, timesteps)
        return {name: StepTable(self.denoiser.get_submodule(name), rows, clock) for name, rows in outputs.items()}

    def _outputs_by_step(self, names: list[str], timesteps: Tensor) -> dict[str, Tensor]:
        """[steps, out] of every layer of the time path, computed by these very layers one step at a time."""
        denoiser: Any = self.variant.denoiser
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        blocks = [denoiser.get_submodule(n.rpartition(".")[0]) for n in names if n.endswith(".time_emb_proj")]

        def recorder(name: str) -> Any:
            return lambda layer, args, output: rows[name].append(output)

        watched = [denoiser.get_submodule(name).register_forward_hook(recorder(name)) for name in names]
        try:
            for timestep in timesteps:
                if self.variant.clock is not None:
                    self.variant.clock.read(denoiser, (), {"timestep": timestep})
                embedding = denoiser.time_embedding(denoiser.time_proj(timestep[None]).to(denoiser.dtype))
                for block in blocks:
                    block.time_emb_proj(embedding if block.skip_time_act else block.nonlinearity(embedding))
        finally:
            for hook in watched:
                hook.remove()
        return {name: torch.cat(outputs) for name, outputs in rows.items()}


def _own(quantize_input: Any) -> nn.Module:
    """A layer's own quantizer, whether or not others share it."""
    own: nn.Module = quantize_input.quantizer if isinstance(quantize_input, OncePerInput) else quantize_input
    return own
