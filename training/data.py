"""Endless seeded batches of the shape world. Nothing is stored: drawing a clip costs 3 ms of one core."""

from __future__ import annotations

import torch
from torch import Tensor

from qvd_core.shapeworld.scene import TRAINING_SCENES, Scene, render


def batch_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """The generator of one batch: a function of its place alone, so a resumed run sees the same data."""
    mixed = (seed * 1_000_003 + step) * 1_009 + rank
    return torch.Generator(device).manual_seed(mixed)


def draw_clips(count: int, generator: torch.Generator) -> tuple[Tensor, list[Scene]]:
    """`count` random training clips [count, 16, 3, 64, 64] in [0, 1] with their scenes."""
    scenes = _draw_scenes(count, generator)
    return render(scenes, generator), scenes


def draw_images(count: int, generator: torch.Generator, earliest: float = 0.0) -> tuple[Tensor, list[Scene]]:
    """`count` single frames [count, 3, 64, 64] of random training clips, at moments in [`earliest`, 1]."""
    scenes = _draw_scenes(count, generator)
    moments = torch.rand((count, 1), generator=generator, device=generator.device)
    return render(scenes, generator, at=earliest + (1 - earliest) * moments)[:, 0], scenes


def _draw_scenes(count: int, generator: torch.Generator) -> list[Scene]:
    picks = torch.randint(0, len(TRAINING_SCENES), (count,), generator=generator, device=generator.device)
    return [TRAINING_SCENES[i] for i in picks.tolist()]
