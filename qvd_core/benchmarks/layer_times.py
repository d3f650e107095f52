"""What the layers of a denoiser take in one step: the int8 products alone, and all layers of a kind."""

from __future__ import annotations

import statistics as mathematics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qvd_core.engines.int8_layer import Int8Layer
from qvd_core.variant import Variant

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def bare_kernels(denoiser: nn.Module, inputs: Inputs, repeats: int) -> float:
    """Seconds of all int8 products of a step alone, on codes that are there already: the limit of the engine."""
    calls: list[Callable[[], Any]] = []
    undo: list[Callable[[], None]] = []
    for layer in denoiser.modules():
        if isinstance(layer, Int8Layer):
            undo.append(layer.record_products(calls))
    try:
        with torch.inference_mode():
            denoiser(*inputs[0], **inputs[1])
    finally:
        for stop in undo:
            stop()
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.perf_counter()
            for call in calls:
                call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return mathematics.median(seconds)


def seconds_by_kind(integer: Variant, inputs: Inputs) -> dict[str, dict[str, float]]:
    """Seconds of all layers of a kind in one step, in floating point and as the integer variant has them, eager."""
    kinds = {site.name: site.kind for site in integer.model.sites}
    for name, placement in integer.placements.items():
        if placement.engine == "table":
            kinds[name] = "time path"
        elif placement.engine != "int8":
            del kinds[name]
    found: dict[str, dict[str, float]] = {}
    for side, denoiser in (("floating point", integer.model.denoiser), ("int8", integer.denoiser)):
        for name, seconds in _seconds_of(denoiser, list(kinds), inputs).items():
            row = found.setdefault(kinds[name], {})
            row[side] = row.get(side, 0.0) + seconds
    return found


def _seconds_of(denoiser: nn.Module, names: list[str], inputs: Inputs) -> dict[str, float]:
    taken = dict.fromkeys(names, 0.0)
    began: dict[str, float] = {}

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: began.__setitem__(name, time.perf_counter())

    def end(name: str) -> Callable[..., None]:
        return lambda *_: taken.__setitem__(name, time.perf_counter() - began[name])

    hooks = [denoiser.get_submodule(name).register_forward_pre_hook(begin(name)) for name in names]
    hooks += [denoiser.get_submodule(name).register_forward_hook(end(name)) for name in names]
    try:
        with torch.inference_mode():
            for _ in range(2):  # the first one warms up
                denoiser(*inputs[0], **inputs[1])
    finally:
        for hook in hooks:
            hook.remove()
    return taken
