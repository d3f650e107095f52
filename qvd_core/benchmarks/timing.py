"""How things are timed: in turn, since a machine's speed drifts, and by medians."""

from __future__ import annotations

import statistics as mathematics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qvd_core.calibration.calibrate import calibration_prompts
from qvd_core.models.loader import VideoModel
from qvd_core.sampling import default_settings, sample
from qvd_core.variant import share_structure


def alternate(sides: tuple[Callable[[], Any], ...], repeats: int) -> list[float]:
    """Median seconds of each side, run in turn after one warm-up of each."""
    for side in sides:
        side()
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    return [mathematics.median(taken) for taken in seconds]


def denoiser_inputs(model: VideoModel) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the denoiser receives at the first step of its default clip."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    watched = share_structure(model.denoiser)

    def remember(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))

    watched.register_forward_pre_hook(remember, with_kwargs=True)
    sample(model, watched, default_settings(model, calibration_prompts(model, 1)[0], steps=1))
    return seen[0]
