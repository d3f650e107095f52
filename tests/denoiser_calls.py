"""The calls a pipeline makes of its denoiser, to be made again of any stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.models.loader import VideoModel
from qvd_core.sampling import default_settings, sample
from qvd_core.variant import share_structure


def recorded_calls(model: VideoModel, prompt: str, **changes: Any) -> list[Callable[[nn.Module], Tensor]]:
    """One function for each call of a sampling run, in order; it gives what a denoiser makes of the same arguments."""
    calls: list[Callable[[nn.Module], Tensor]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def again(denoiser: nn.Module) -> Tensor:
            with torch.inference_mode():
                return denoiser(*args, **kwargs)[0]

        calls.append(again)

    watched = share_structure(model.denoiser)
    watched.register_forward_pre_hook(record, with_kwargs=True)
    sample(model, watched, default_settings(model, prompt, **changes))
    return calls
