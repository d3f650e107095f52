"""A denoiser's computation fused by torch.compile."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException, Unsupported

from qvd_core.errors import EngineError


class Compiled:
    """Stands for the `forward` of a denoiser that never changes: compiled at the first call, without its hooks.

    At every call it checks the arguments and the clock, but not each layer: thousands of checks take as long as a
    tenth of a small model's step. So nothing that was compiled may ever be met by other layers. What is compiled is
    kept by code object, of which each denoiser gets one of its own; and all of it must be one graph, because
    layers of the same class share the code in which a second would begin.

    A copy of the denoiser is not compiled.
    """

    def __init__(self, denoiser: nn.Module):
        functools.update_wrapper(self, denoiser.forward)  # pipelines look at its signature
        forward = self._plain = denoiser.forward
        self._denoiser = denoiser
        self._uncompiled: set[tuple[torch.Size, ...]] = set()

        def call(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
        options: dict[str, Any] = {"freezing": True, "guard_filter_fn": _needed_guards}
        self._compiled: Any = torch.compile(own, fullgraph=True, options=options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        sizes = tuple(value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if sizes not in self._uncompiled:
            try:
                return self._compiled(*args, **kwargs)
            except (Unsupported, FailOnRecompileLimitHit) as error:
                self._uncompiled.add(sizes)
                warnings.warn(f"Clips of this size are computed uncompiled: {_in_short(error)}", stacklevel=2)
            except TorchDynamoException as error:
                raise EngineError(f"{_in_short(error)} Convert the variant without compiled=True.") from error
        return self._plain(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = copy.deepcopy(self._denoiser, memo)
        return types.MethodType(type(twin).forward, twin)


def _needed_guards(guards: Any) -> list[bool]:
    return [not g.name or g.name.startswith(("args", "kwargs")) or g.name.endswith(".known") for g in guards]


def _in_short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return f"torch.compile failed ({' '.join(lines[:2])})."
