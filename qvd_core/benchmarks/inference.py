"""One denoising step in every arithmetic this machine has, side by side in one run.

Every side computes the same call of the same denoiser. The baselines get what this project's engine gets: the
memory format and the compiler that suit them best; ratios are to the best of each kind.
"""

from __future__ import annotations

import copy
import gc
import statistics as mathematics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.benchmarks.layer_times import Inputs, bare_kernels, seconds_by_kind
from qvd_core.benchmarks.memory import transient_bytes
from qvd_core.benchmarks.timing import alternate, denoiser_inputs
from qvd_core.calibration.statistics import Statistics
from qvd_core.engines.compiled import Compiled
from qvd_core.engines.int8_layer import Int8Layer
from qvd_core.engines.integer import engine_on, in_integers
from qvd_core.errors import EngineError
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.variant import Variant, quantize

KINDS = ("fp32", "bf16", "torchao", "quanto")
RECIPES = tuple(map(get_recipe, ("minmax-w8a8", "qvd-w8a8", "dynamic-w8a8")))


@dataclass(frozen=True)
class Side:
    """One way to compute the step.

    Attributes:
        name: "bf16, channels last, compiled".
        kind: what it is compared as: "fp32", "bf16", "int8", "torchao", "quanto".
        make: builds the denoiser.
        dtype: of its arguments.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    dtype: torch.dtype


def benchmark_inference(
    model: VideoModel,
    statistics: Statistics | None = None,
    *,
    recipes: Sequence[Recipe] = RECIPES,
    against: tuple[str, ...] = KINDS,
    repeats: int = 10,
    compiled: bool = True,
    inputs: Inputs | None = None,
    variants: dict[str, Variant] | None = None,
    one_at_a_time: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Measure one denoising step of `model` in floating point, in int8 and by other libraries.

    Args:
        statistics: for recipes that need them.
        recipes: whose int8 variants are measured.
        against: the kinds of sides they are compared with.
        repeats: rounds, in each of which every side runs once; medians are compared.
        compiled: also every side under torch.compile, which takes minutes.
        inputs: the arguments of the call; None for those of the model's default clip.
        variants: by recipe, variants that are there already.
        one_at_a_time: build and measure each side in turn with the int8 variant of the last recipe alone, and drop it
            again: for models of which memory does not hold all sides at once.
        on_stage: told what happens next; may raise to cancel.

    Returns:
        "sides": by name, kind, median seconds, those of the int8 side that was measured in turn with it, bytes of
        weights and the bytes that a step takes at most beside them (see `transient_bytes`); "left_out": by name, why
        a side is missing; "ratio_int8_to_fp32", "ratio_int8_to_best_bf16", "ratio_int8_to_torchao",
        "ratio_int8_to_quanto" (best against best; None where one is missing) and "ratio_int8_to_bare_kernels", the
        step against the sum of its int8 kernels alone; "by_kind", seconds of all layers of a kind, in floating point
        and in int8, eager.

    Raises:
        EngineError: this machine has no integer arithmetic worth measuring, or no int8 side could be built.
    """
    engine_on(model.device.name)  # before all that takes minutes
    args, kwargs = inputs or denoiser_inputs(model)
    variants = variants or {}
    simulated = {r.name: variants.get(r.name) or quantize(model, r, statistics) for r in recipes}
    sides = [side for side in (*_floating(model), *_peers(model)) if side.kind in against]
    if compiled:
        sides += [Side(f"{s.name}, compiled", s.kind, partial(_compiled, s.make), s.dtype) for s in sides]
    for name, variant in simulated.items():
        for fuse in (False, True) if compiled else (False,):
            make = partial(_in_integers, variant, fuse)
            sides.append(Side(f"int8, {name}{', compiled' * fuse}", "int8", make, _dtype(model)))
    rounds = _Rounds((args, kwargs), repeats, model.device.name, on_stage)
    measured = (rounds.each_with_int8 if one_at_a_time else rounds.all_in_turn)(sides)
    fastest = min((name for name, side in measured.items() if side.kind == "int8"), key=lambda n: measured[n].seconds)
    int8 = measured[fastest].seconds
    on_stage("bare kernels")
    integer = in_integers(simulated[fastest.removeprefix("int8, ").removesuffix(", compiled")])
    same = cast(args, kwargs, _dtype(model))
    kernels = bare_kernels(integer.denoiser, same, repeats)

    def ratio(kind: str) -> float | None:
        """To the best of that kind."""
        return max((side.int8_seconds / side.seconds for side in measured.values() if side.kind == kind), default=None)

    return {
        "ratio_int8_to_fp32": ratio("fp32"),
        "ratio_int8_to_best_bf16": ratio("bf16"),
        "ratio_int8_to_torchao": ratio("torchao"),
        "ratio_int8_to_quanto": ratio("quanto"),
        "ratio_int8_to_bare_kernels": int8 / kernels,
        "fastest_int8": fastest,
        "bare_kernels_seconds": kernels,
        "placements": integer.arithmetic,
        "sides": {name: asdict(side) for name, side in measured.items()},
        "left_out": rounds.left_out,
        "by_kind": seconds_by_kind(integer, same),
        "model": model.spec.name,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
    }


@dataclass(frozen=True)
class _Measured:
    """What is known of one side; `int8_seconds` of the int8 side it was measured in turn with."""

    kind: str
    seconds: float
    int8_seconds: float
    weight_bytes: int
    step_bytes: int | None


class _Rounds:
    """How sides are measured; `left_out` says by name why one was not."""

    def __init__(self, inputs: Inputs, repeats: int, device: str, on_stage: Callable[[str], None]):
        self.inputs, self.repeats, self.device, self.on_stage = inputs, repeats, device, on_stage
        self.left_out: dict[str, str] = {}

    def all_in_turn(self, sides: Sequence[Side]) -> dict[str, _Measured]:
        """All sides in every round."""
        ready = {side: found for side in sides if (found := self._ready(side)) is not None}
        self.on_stage("all of them in turn")
        seconds = dict(zip(ready, alternate(tuple(call for call, _ in ready.values()), self.repeats), strict=True))
        int8 = min((value for side, value in seconds.items() if side.kind == "int8"), default=None)
        if int8 is None:
            raise self._no_int8()
        self.on_stage("memory")
        return {
            side.name: _Measured(side.kind, seconds[side], int8, held, transient_bytes(call, self.device))
            for side, (call, held) in ready.items()
        }

    def each_with_int8(self, sides: Sequence[Side]) -> dict[str, _Measured]:
        """Every side in rounds of its own with the last int8 side that can be built; no more than two are held."""
        ours = reversed([side for side in sides if side.kind == "int8"])
        base, found = next(((side, found) for side in ours if (found := self._ready(side))), (None, None))
        if base is None or found is None:
            raise self._no_int8()
        int8_call, int8_held = found
        measured: dict[str, _Measured] = {}
        for side in sides:
            if side is base or side.name in self.left_out or (found := self._ready(side)) is None:
                continue
            call, held = found
            int8, seconds = alternate((int8_call, call), self.repeats)
            measured[side.name] = _Measured(side.kind, seconds, int8, held, transient_bytes(call, self.device))
            del call, found
            gc.collect()
        found_beside = [side.int8_seconds for side in measured.values()]
        int8 = mathematics.median(found_beside or alternate((int8_call,), self.repeats))
        measured[base.name] = _Measured("int8", int8, int8, int8_held, transient_bytes(int8_call, self.device))
        return measured

    def _ready(self, side: Side) -> tuple[Callable[[], Any], int] | None:
        """Its call, warm, and the bytes of its weights; None if it cannot be built or run."""
        self.on_stage(side.name)
        try:
            denoiser = side.make()
            call = _call(denoiser, *self.inputs, side.dtype)
            call()
        except Exception as error:  # of other libraries and compilers, in many ways
            self.left_out[side.name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return None
        return call, weight_bytes(denoiser)

    def _no_int8(self) -> EngineError:
        reasons = [f"{name}: {reason}" for name, reason in self.left_out.items() if name.startswith("int8")]
        return EngineError(f"Nothing is computed in int8 here. {'; '.join(reasons)}")


def _in_integers(variant: Variant, compiled: bool) -> nn.Module:
    return in_integers(variant, compiled=compiled).denoiser


def in_format(model: VideoModel, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    """A copy of the denoiser in another dtype, perhaps in another memory format."""
    twin: Any = copy.deepcopy(model.denoiser).to(dtype)
    formatted: nn.Module = twin.to(memory_format=torch.channels_last) if channels_last else twin
    return formatted


def _floating(model: VideoModel) -> list[Side]:
    return [
        Side(f"{name}{', channels last' * last}", name, partial(in_format, model, dtype, last), dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for last in (False, True)
    ]


def _peers(model: VideoModel) -> list[Side]:
    def torchao() -> nn.Module:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        twin = copy.deepcopy(model.denoiser).to(torch.bfloat16)
        quantize_(twin, Int8DynamicActivationInt8WeightConfig())
        return twin

    def quanto() -> nn.Module:
        from optimum.quanto import freeze, qint8
        from optimum.quanto import quantize as quanto_quantize

        twin = copy.deepcopy(model.denoiser).to(torch.bfloat16)
        quanto_quantize(twin, weights=qint8)
        freeze(twin)
        return twin

    return [
        Side("torchao int8 dynamic", "torchao", torchao, torch.bfloat16),
        Side("optimum-quanto int8 weights", "quanto", quanto, torch.bfloat16),
    ]


def _compiled(make: Callable[[], nn.Module]) -> nn.Module:
    return compiled_denoiser(make())


def compiled_denoiser(denoiser: Any) -> nn.Module:
    """`denoiser` itself, which compiles at its first call."""
    denoiser.forward = Compiled(denoiser)
    same: nn.Module = denoiser
    return same


def _dtype(model: VideoModel) -> torch.dtype:
    return next(model.denoiser.parameters()).dtype


def cast(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Inputs:
    """Arguments of a denoiser in `dtype`, but for the timestep."""

    def to(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.dim() > 1 and value.is_floating_point() else value

    return tuple(map(to, args)), {name: to(value) for name, value in kwargs.items()}


def _call(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Callable[[], Any]:
    args, kwargs = cast(args, kwargs, dtype)

    def call() -> Any:
        with torch.inference_mode():
            return denoiser(*args, **kwargs)

    return call


def weight_bytes(denoiser: nn.Module) -> int:
    """Bytes of all parameters and buffers a denoiser computes with, each once."""
    sizes: dict[int, int] = {}
    for module in denoiser.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            sizes[id(tensor)] = _bytes(tensor)
        if isinstance(module, Int8Layer):  # in an order that may be a kernel's own
            sizes[id(module.prepared)] = module.weight_count
    return sum(sizes.values())


def _bytes(tensor: Any) -> int:
    """Of a tensor, or of those that other libraries' tensors are made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return int(tensor.numel() * tensor.element_size())
