"""A quantized denoiser without its numbers: what stands where, as JSON, and rebuilt from it; and its stored tensors.

    {"timesteps": of the sampler that layers are tied to, or None,
     "pieces": {module path: what stands there}}

A piece is a layer with the quantizer of its input, a table in place of a layer, or a norm that has taken
something in. All else is as in the denoiser's own config.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.errors import ModelError
from qvd_core.layers.clock import StepClock
from qvd_core.layers.description import LARGEST_COUNT, Description, Place, read_fields
from qvd_core.layers.exact import exact_names
from qvd_core.layers.folded_norm import PositionedNorm, describe_norm, rebuild_norm
from qvd_core.layers.inputs import rebuild_quantizer
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.models.sites import LAYER_KINDS


def describe(denoiser: nn.Module, clock: StepClock | None) -> Description:
    """The structure of a variant's denoiser, JSON-ready."""
    pieces: dict[str, Description] = {}
    owners: dict[nn.Module, str] = {}  # of input quantizers, the first of several layers that share one
    inside = {id(m.norm) for m in denoiser.modules() if isinstance(m, PositionedNorm)}
    for name, module in denoiser.named_modules():
        if isinstance(module, QuantizedLayer):
            own: Any = module.quantize_input
            described: Description | None
            if own is not None and owners.setdefault(own, name) != name:
                described = {"kind": "shared", "with": owners[own]}
            else:
                described = None if own is None else own.describe()
            pieces[name] = module.describe() | {"input": described}
        elif isinstance(module, TabulatedLayer):
            pieces[name] = module.describe()
        elif id(module) not in inside and (special := describe_norm(module)) is not None:
            pieces[name] = special
    return {"timesteps": None if clock is None else list(clock.timesteps), "pieces": pieces}


def rebuild(denoiser: nn.Module, structure: Any) -> StepClock | None:
    """Put the pieces of `structure` into a plain denoiser, which is changed; their tensors are on the meta device.

    Args:
        denoiser: as its config makes it. Each quantized layer computes in the dtype of the layer it replaces.
        structure: what `describe` gave, or anything that claims to be that.

    Returns:
        The clock that some layers read; None if none does.

    Raises:
        ModelError: it does not describe this denoiser, or names what is not known here.
    """
    structure = read_fields(structure, "the denoiser", timesteps=(list, type(None)), pieces=dict)
    clock = None if structure["timesteps"] is None else StepClock(denoiser, _timesteps(structure["timesteps"]))
    pieces = structure["pieces"]
    plain = {name: module for name, module in denoiser.named_modules() if name in pieces and name}
    if len(plain) < len(pieces):
        unknown = min(set(pieces) - set(plain))
        raise ModelError(f"The checkpoint describes {unknown!r}, which {type(denoiser).__name__} of this config lacks.")
    built: dict[str, QuantizedLayer] = {}
    for name, module in plain.items():  # in the order of `describe`, whatever that of the file is
        values = pieces[name]
        kind = values.get("kind") if isinstance(values, dict) else values
        if kind == "norm":
            rebuild_norm(denoiser, name, values)
            continue
        place = Place(name, module, LAYER_KINDS.get(type(module), "no linear layer or convolution"), clock)
        if kind not in ("layer", "tabulated") or place.kind not in LAYER_KINDS.values():
            raise ModelError(f"The checkpoint describes {name}, {place.kind}, as {kind!r}, which is not known here.")
        parent, _, child = name.rpartition(".")
        piece: nn.Module
        if kind == "tabulated":
            piece = TabulatedLayer.rebuild(values, place)
        else:
            piece = built[name] = _rebuild_layer(values, place, built)
        setattr(denoiser.get_submodule(parent), child, piece)
    return clock


def _rebuild_layer(values: Description, place: Place, built: dict[str, QuantizedLayer]) -> QuantizedLayer:
    described = values.get("input")
    quantizer: nn.Module | None = None
    if isinstance(described, dict) and described.get("kind") == "shared":
        owner = built.get(read_fields(described, f"the input of {place.name}", **{"with": str})["with"])
        if owner is None or owner.quantize_input is None:
            raise ModelError(f"The checkpoint has {place.name} share the input of {described['with']}, which has none.")
        quantizer = owner.quantize_input
    elif isinstance(described, dict):
        quantizer = rebuild_quantizer(described, place)
    elif described is not None or "input" not in values:
        raise ModelError(f"The checkpoint describes no input of {place.name}.")
    own = {field: value for field, value in values.items() if field != "input"}
    return QuantizedLayer.rebuild(own, place, quantizer)


def _timesteps(values: list[Any]) -> Tensor:
    numbers = [t for t in values if type(t) in (int, float) and math.isfinite(t)]
    if not 0 < len(values) <= LARGEST_COUNT or len(set(numbers)) != len(values):
        raise ModelError("The checkpoint's timesteps are not different finite numbers.")
    return torch.tensor(numbers, dtype=torch.float64)


def stored_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name: parameters and persistent buffers, those that are shared only once."""
    state = denoiser.state_dict(keep_vars=True)
    once = (*denoiser.named_parameters(), *denoiser.named_buffers())
    return {name: tensor.detach() for name, tensor in once if name in state}


def put_tensor(denoiser: nn.Module, name: str, tensor: Tensor) -> None:
    """Set one of the stored tensors."""
    parent, _, child = name.rpartition(".")
    module = denoiser.get_submodule(parent)
    if child in module._parameters:
        module._parameters[child] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[child] = tensor


def check_values(tensors: dict[str, Tensor], denoiser: nn.Module) -> None:
    """Refuse numbers that no variant has.

    Raises:
        ModelError: a NaN or infinity, or a scale that is not positive.
    """
    exact = exact_names(denoiser)
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        if not tensor.is_floating_point():
            continue
        unreachable = kind == "thresholds"  # of a logarithmic grid over a range of zero
        if not bool((~torch.isnan(tensor) if unreachable else torch.isfinite(tensor)).all()):
            raise ModelError(f"The checkpoint's {name} contains NaN or infinite values; it is not used.")
        if name in exact and kind in ("scale", "scales") and not bool((tensor > 0).all()):
            raise ModelError(f"The checkpoint's {name} contains scales that are not positive; it is not used.")
