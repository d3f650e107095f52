"""From a simulated variant to one that computes in integers, and what became of every layer.

The time path of a UNet depends on the step alone: the outputs of its quantized layers are looked up, which costs
nothing and is exact. Everything else runs on int8 kernels or, with the reason given, stays as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.calibration.temporal_features import ADDED_EMBEDDINGS, sampler_timesteps
from qvd_core.engines import cpu_int8, cuda_layer
from qvd_core.engines.compiled import Compiled
from qvd_core.engines.int8_layer import PackedLayer, centred_codes, int8_layer, int8_parts
from qvd_core.errors import CalibrationError, EngineError, memory_errors
from qvd_core.formats import Tabulated
from qvd_core.layers.clock import TableClock
from qvd_core.layers.inputs import (
    DynamicSplit,
    Logarithmic,
    OncePerInput,
    StaticPerStep,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import StepTable
from qvd_core.recipe import TIME_PATH
from qvd_core.variant import Placement, Variant, shared_tensors

ENGINES: dict[str, Any] = {"cpu": cpu_int8, "cuda": cuda_layer}
"""By device, the module with its `unavailable`, `takes`, `Codes` and `new_layer`."""


def engine_on(device: str) -> Any:
    """The int8 kernels of a device, "cpu" or "cuda".

    Raises:
        EngineError: it has none worth using.
    """
    engine = ENGINES[device]
    if reason := engine.unavailable():
        raise EngineError(f"No integer arithmetic here: {reason}. Keep to the simulated variant.")
    return engine


def in_integers(variant: Variant, *, compiled: bool = False, packed: bool = False) -> Variant:
    """The same variant in integer arithmetic, on the kernels of the device its model is on.

    Args:
        variant: simulated; left untouched, and sharing with the new one all that is not quantized.
        compiled: fuse what is between the kernels by torch.compile, at the first clip; takes a minute or more and
            a C++ compiler, and is then much faster. A clip of a size that cannot be compiled is computed
            uncompiled, with a warning; without a compiler the first clip raises EngineError.
        packed: keep weights as a checkpoint has them, of 2 to 8 bits without gaps, and unpack those of one layer at a
            time, in every call. Slower, and the least memory; otherwise all are unpacked to int8 once, now.

    Returns:
        A variant whose `engine` is "int8" and whose `placements` say for every site how it is computed and why.

    Raises:
        EngineError: this device has no int8 kernels worth using; the variant is none that is simulated; or it is to
            be compiled and packed at once.
        OutOfMemory: the weights do not fit.
    """
    if variant.engine != "simulate":
        raise EngineError(f"{variant.recipe.name} computes in {variant.engine} already; pass the simulated variant.")
    if compiled and packed:
        raise EngineError("Packed weights are unpacked in every call, which cannot be compiled; choose one.")
    engine = engine_on(variant.model.device.name)
    with memory_errors(f"the int8 weights of {variant.recipe.name}", "Drop another variant first."):
        return _Converter(variant, engine, packed).convert(compiled)


class _Converter:
    """The steps of one conversion, and what they share."""

    def __init__(self, variant: Variant, engine: Any, packed: bool):
        self.variant, self.engine, self.packed = variant, engine, packed
        # The denoiser and its clock in one copy, so that the copies know each other.
        originals = variant.denoiser, variant.clock
        self.denoiser, self.clock = copy.deepcopy(originals, shared_tensors(variant.denoiser))
        self.codes: dict[int, nn.Module] = {}
        self.readers: Counter[int] = Counter()

    @torch.no_grad()
    def convert(self, compiled: bool) -> Variant:
        tables = self._time_path()
        layers = {site.name: self.denoiser.get_submodule(site.name) for site in self.variant.model.sites}
        reasons = {name: self._reason(layer) for name, layer in layers.items() if name not in tables}
        self._count_readers({name: layers[name] for name in reasons}, reasons)
        parts = (
            {} if self.packed else self._parts({name: layers[name] for name, reason in reasons.items() if not reason})
        )
        placements = {}
        for name, layer in layers.items():
            reason = reasons.get(name)
            if name in tables:
                new, placements[name] = tables[name], Placement("table", "depends on the step alone")
            elif reason is not None:
                new, placements[name] = layer, Placement("floating point", reason)
            else:
                new, placements[name] = parts.get(name) or self._int8(layer), Placement("int8")
            if new is not layer:
                parent, _, child = name.rpartition(".")
                setattr(self.denoiser.get_submodule(parent), child, new)
        if compiled:
            self.denoiser.forward = Compiled(self.denoiser)
        return dataclasses.replace(
            self.variant, denoiser=self.denoiser.eval(), clock=self.clock, engine="int8", placements=placements
        )

    def _reason(self, layer: Any) -> str | None:
        """Why `layer` is not computed in int8; None if it is."""
        if not isinstance(layer, QuantizedLayer):
            return "the recipe leaves it as it is"
        codes = layer.codes
        if codes is None:
            return "its weights are in floating point"
        if layer.quantize_input is None:
            return "its input is in floating point"
        quantizer = _own(layer.quantize_input)
        if isinstance(quantizer, Logarithmic):
            return "its input is on a logarithmic grid"
        form: Any = quantizer.quantizer if isinstance(quantizer, DynamicSplit) else quantizer
        bits = (form.code_max - form.code_min).bit_length()
        if bits > 8:
            return f"its input has {bits} bits, more than int8 holds"
        assert layer.weight_zero_point is not None
        products = codes[0].numel()
        zero_points = centred_codes(codes, layer.weight_zero_point) is None
        refused: str | None = self.engine.takes(layer.kind, getattr(layer, "groups", 1), products, zero_points)
        return refused

    def _count_readers(self, layers: dict[str, Any], reasons: dict[str, str | None]) -> None:
        """How many layers will read the codes of an input, and how many still its simulation, which must know."""
        inputs = {name: layer.quantize_input for name, layer in layers.items() if isinstance(layer, QuantizedLayer)}
        shared = {name: own for name, own in inputs.items() if isinstance(own, OncePerInput)}
        self.readers = Counter(id(own) for name, own in shared.items() if reasons[name] is None)
        simulated = Counter(id(own) for name, own in shared.items() if reasons[name] is not None)
        for own in shared.values():
            own.readers = simulated[id(own)] or own.readers

    def _parts(self, layers: dict[str, Any]) -> dict[str, nn.Module]:
        """Of layers in int8, those that can be computed together, such as q, k and v: fewer and larger products."""
        readers: dict[int, list[str]] = {}
        for name, layer in layers.items():
            readers.setdefault(id(layer.quantize_input), []).append(name)
        parts: dict[str, nn.Module] = {}
        for names in readers.values():
            together = [layers[name] for name in names]
            if len(names) > 1 and all(_plain_linear(layer) for layer in together):
                quantizer: Any = _own(together[0].quantize_input)
                parts |= zip(names, int8_parts(self.engine, together, quantizer), strict=True)
        return parts

    def _int8(self, layer: Any) -> nn.Module:
        quantizer = _own(layer.quantize_input)
        split = isinstance(quantizer, (StaticSplit, DynamicSplit))
        codes = None if split else self._codes(layer.quantize_input)
        if self.packed:
            return PackedLayer(self.engine, layer, quantizer, codes)
        return int8_layer(self.engine, layer, quantizer, codes)

    def _codes(self, quantize_input: Any) -> nn.Module:
        """Codes of one input, shared by the readers that share its quantizer."""
        if id(quantize_input) not in self.codes:
            quantizer: Any = _own(quantize_input)
            codes: nn.Module = self.engine.Codes(quantizer)
            if self.readers[id(quantize_input)] > 1:
                codes = OncePerInput(codes, self.readers[id(quantize_input)])
            self.codes[id(quantize_input)] = codes
        return self.codes[id(quantize_input)]

    def _time_path(self) -> dict[str, nn.Module]:
        """Tables of the layers of the time path, by site; none where they depend on more than the step."""
        try:
            timesteps = sampler_timesteps(self.variant.model, self.variant.steps)
        except CalibrationError:  # depend on more than their number
            return {}
        if len(set(timesteps.tolist())) != len(timesteps):
            return {}
        outputs = self._outputs_by_step(self._depending_on_the_step(), timesteps)
        if not outputs and self.clock is None:
            return {}
        clock = TableClock(self.denoiser, timesteps)
        for module in self.denoiser.modules():
            if isinstance(module, StaticPerStep):
                module.clock = clock
        layers = {name: self.denoiser.get_submodule(name) for name in outputs}
        for layer in layers.values():
            if isinstance(layer, QuantizedLayer):
                layer.keep_packed()  # hardly ever computed from now on
        return {name: StepTable(layer, outputs[name], clock) for name, layer in layers.items()}

    def _depending_on_the_step(self) -> list[str]:
        """Sites of the time path whose outputs are to be looked up: what is quantized, or read by tables alone."""
        denoiser: Any = self.denoiser
        conditioned = getattr(getattr(denoiser, "time_embedding", None), "cond_proj", None) is not None
        if conditioned or any(getattr(denoiser, name, None) is not None for name in ADDED_EMBEDDINGS):
            return []
        tabulated = isinstance(self.variant.recipe.temporal, Tabulated)
        sites = [site.name for site in self.variant.model.sites if site.role in TIME_PATH]
        return [name for name in sites if tabulated or isinstance(denoiser.get_submodule(name), QuantizedLayer)]

    def _outputs_by_step(self, names: list[str], timesteps: Tensor) -> dict[str, Tensor]:
        """[steps, out] of every layer of the time path, computed by these very layers one step at a time."""
        if not names:
            return {}
        denoiser: Any = self.denoiser
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        blocks = [denoiser.get_submodule(n.rpartition(".")[0]) for n in names if n.endswith(".time_emb_proj")]

        def recorder(name: str) -> Any:
            return lambda layer, args, output: rows[name].append(output)

        watched = [denoiser.get_submodule(name).register_forward_hook(recorder(name)) for name in names]
        try:
            for timestep in timesteps.to(next(denoiser.parameters()).device):
                if self.clock is not None:
                    self.clock.read(denoiser, (), {"timestep": timestep})
                embedding = denoiser.time_embedding(denoiser.time_proj(timestep[None]).to(denoiser.dtype))
                for block in blocks:
                    block.time_emb_proj(embedding if block.skip_time_act else block.nonlinearity(embedding))
        finally:
            for hook in watched:
                hook.remove()
        return {name: torch.cat(outputs) for name, outputs in rows.items()}


def _plain_linear(layer: Any) -> bool:
    return layer.kind == "linear" and layer.input_shift is None and layer.input_scale is None


def _own(quantize_input: Any) -> nn.Module:
    """A layer's own quantizer, whether or not others share it."""
    own: nn.Module = quantize_input.quantizer if isinstance(quantize_input, OncePerInput) else quantize_input
    return own
