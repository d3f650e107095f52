"""The figure of all layers by all steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.architecture import block_of
from analysis.drawing import Axis, Drawing, Heatmap
from analysis.site_map import SiteMap

LABELS = {
    "coverage": "mean coverage",
    "disparity": "widest / median channel",
    "skewness": "skewness",
    "error": "rounding error",
    "output_error": "output error",
}
LOG = ("disparity", "error", "output_error")
FORMATS = {"coverage": ".1%", "skewness": ".2f"}


def site_map(table: SiteMap) -> Drawing:
    """Layers from top to bottom as the model lists them, steps from left to right; a click reports the layer."""
    rows, steps = table.values.shape
    finite = table.values[np.isfinite(table.values) & ((table.values > 0) if table.metric in LOG else True)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if table.metric == "coverage":
        low, high = 0.0, 1.0
    if table.metric in LOG:
        low, high = max(low, high * 1e-6) or 1e-6, max(high, low * 1.01) or 1.0
    elif high <= low:
        high = low + 1
    z = np.where(np.isfinite(table.values), table.values, np.nan)
    if table.metric in LOG:
        z = np.where(z > 0, z, np.nan)
    return Drawing(
        Axis("denoising step", 0.5, steps + 0.5, grid=False),
        Axis("layer, in the model's order", -0.5, rows - 0.5, reverse=True, ticks=_blocks(table.sites), grid=False),
        (
            Heatmap(
                np.arange(1, steps + 1),
                np.arange(rows),
                z,
                LABELS[table.metric],
                low,
                high,
                row="layer",
                column="step",
                log=table.metric in LOG,
                names=table.sites,
                format=FORMATS.get(table.metric, ".3g"),
            ),
        ),
        alt_text=_alt(table),
        height=420,
        keep_zoom="map",
    )


def _blocks(sites: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """A tick where each part of the network begins: "down_blocks.0", "mid_block", ..."""
    ticks: list[tuple[float, str]] = []
    before = ""
    for row, site in enumerate(sites):
        block = block_of(site)
        if block != before and (not ticks or row - ticks[-1][0] > len(sites) / 30):
            ticks.append((row, block))
        before = block
    return tuple(ticks)


def _alt(table: SiteMap) -> str:
    label = LABELS[table.metric]
    if not np.isfinite(table.values).any():
        return f"Map of {label} by layer and step: nothing is known."
    highest = np.unravel_index(np.nanargmax(table.values), table.values.shape)
    lowest = np.unravel_index(np.nanargmin(table.values), table.values.shape)
    return (
        f"Map of {label} of {len(table.sites)} layers at {table.values.shape[1]} steps. Highest"
        f" {table.values[highest]:.3g} at {table.sites[highest[0]]}, step {highest[1] + 1}; lowest"
        f" {table.values[lowest]:.3g} at {table.sites[lowest[0]]}, step {lowest[1] + 1}."
    )
