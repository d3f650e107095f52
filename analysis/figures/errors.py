"""Figures of measured errors."""

from __future__ import annotations

import numpy as np

from analysis.drawing import DATA, FOURTH, OTHER, QUANTIZED, Axis, Drawing, Line
from analysis.errors import ErrorGrowth

COLORS = {"weights": DATA, "layer inputs": OTHER, "time path": FOURTH}


def error_growth(table: ErrorGrowth) -> Drawing:
    """Latent error after each step, one line per part of the recipe."""
    steps = np.arange(1, table.errors.shape[1] + 1)
    lines = tuple(
        Line(
            steps,
            np.where(errors > 0, errors, np.nan),
            COLORS.get(part, QUANTIZED),
            label=part if part in COLORS or part == table.recipe else f"{part} ({table.recipe})",
            dash="solid" if part not in COLORS else "dash",
            hover=tuple(f"{part}<br>step {step}: {error:.2%}" for step, error in zip(steps, errors, strict=True)),
        )
        for part, errors in zip(table.parts, table.errors, strict=True)
    )
    return Drawing(
        Axis("denoising step", 0.5, len(steps) + 0.5),
        Axis("latent error |z′ − z| / |z| (log axis)", log=True),
        lines,
        alt_text=table.in_words(),
        keep_zoom="growth",
    )
