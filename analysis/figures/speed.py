"""The figure of measured speed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from analysis.drawing import DATA, OTHER, QUANTIZED, Axis, Drawing, Points
from analysis.speed import FLOATING, Speed

GROUPS: tuple[tuple[str, tuple[str, ...], str, Literal["circle", "diamond", "cross"]], ...] = (
    ("floating point", FLOATING, DATA, "circle"),
    ("int8", ("int8",), QUANTIZED, "diamond"),
    ("other libraries", ("torchao", "quanto"), OTHER, "cross"),
)


def step_times(table: Speed) -> Drawing:
    """One point per side: milliseconds of a denoising step, the quickest on top."""
    rows = np.arange(len(table.sides))
    kinds = np.array(table.kinds)
    marks = []
    for label, members, color, symbol in GROUPS:
        mine = np.isin(kinds, members)
        if mine.any():
            hover = tuple(
                f"{table.sides[i]}<br>{1e3 * table.seconds[i]:.1f} ms, weights {table.megabytes[i]:.1f} MB"
                for i in rows[mine]
            )
            marks.append(Points(1e3 * table.seconds[mine], rows[mine], color, label, symbol, 11, hover))
    return Drawing(
        Axis("ms for one step (measured)", 0, 1.08e3 * float(table.seconds.max())),
        Axis("", -0.6, len(rows) - 0.4, ticks=tuple(zip(map(float, rows), table.sides, strict=True)), reverse=True),
        tuple(marks),
        alt_text=table.in_words(),
        height=120 + 30 * len(rows),
        keep_zoom="speed",
    )
