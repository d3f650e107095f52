"""A denoiser fused by torch.compile."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch


def fused(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, a denoiser's, fused by torch.compile; at every call it checks the arguments and the clock of tables.

    It does not check each layer, so these must not change any more: thousands of checks take a tenth of a small
    model's step. What is compiled is kept by code object, so every call of this function makes one of its own.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    compiled: Callable[..., Any] = torch.compile(own, options={"freezing": True, "guard_filter_fn": _needed_guards})
    return compiled


def _needed_guards(guards: Any) -> list[bool]:
    return [not g.name or g.name.startswith(("args", "kwargs")) or g.name.endswith(".known") for g in guards]
