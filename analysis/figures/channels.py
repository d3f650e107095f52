"""Figures of one layer's channels: their ranges on the grid, by step, and SCRI's search for a threshold."""

from __future__ import annotations

import numpy as np

from analysis.channels import ChannelTable
from analysis.drawing import DATA, QUANTIZED, Axis, Bars, Drawing, Heatmap, Line, Points, Rule, number
from analysis.scri import ChannelWidths, ThresholdTable

MAX_BARS = 512
MAX_BITS_WITH_LEVELS = 5
SORT_WORDS = {
    "channel": "by number",
    "range": "narrowest range first",
    "centre": "lowest centre first",
    "error": "largest rounding error first",
}


def ranges(table: ChannelTable) -> Drawing:
    """One vertical bar per channel, from its smallest to its largest value, before the quantization grid.

    Above 512 channels, neighbours in the order shown share a bar that keeps their extremes.
    """
    count = len(table.channel)
    per_bar = -(-count // MAX_BARS)
    starts = np.arange(0, count, per_bar)
    low, high = np.minimum.reduceat(table.low, starts), np.maximum.reduceat(table.high, starts)
    if per_bar == 1:
        columns = zip(table.channel, table.low, table.high, table.coverage, table.codes, strict=True)
        hover = tuple(
            f"channel {c}<br>{number(a)} to {number(b)}<br>{share:.1%} of the grid, up to {codes:,} codes"
            for c, a, b, share, codes in columns
        )
    else:
        hover = tuple(
            f"places {s} to {min(s + per_bar, count) - 1}<br>{number(a)} to {number(b)}"
            for s, a, b in zip(starts, low, high, strict=True)
        )
    width = per_bar * (0.8 if len(starts) <= 160 else 1.0)
    bars = Bars(starts + (per_bar - 1) / 2, low, high, width, hover=hover)
    bottom, top = table.grid_ends
    ends = (min(bottom, float(low.min())), max(top, float(high.max())))
    room = 0.09 * (ends[1] - ends[0])
    levels = table.levels() if table.form.bits <= MAX_BITS_WITH_LEVELS else np.array([])
    together = f"<br>{per_bar} neighbours per bar, extremes kept" if per_bar > 1 else ""
    unit = "transformed value" if table.transformed else "value"
    return Drawing(
        Axis(f"input channel, {SORT_WORDS[table.sort]}{together}", -1, count, grid=False),
        Axis(f"{unit} (dimensionless)", ends[0] - room, ends[1] + room, grid=len(levels) == 0),
        (
            *(Rule("y", float(level), width=0.6) for level in levels),
            Rule("y", top, label=f"highest code: {number(top)}"),
            Rule("y", bottom, label=f"lowest code: {number(bottom)}", side="below"),
            bars,
        ),
        alt_text=_ranges_alt(table, per_bar),
        keep_zoom=f"{table.site} {table.sort}",
    )


def widths(table: ChannelWidths) -> Drawing:
    """How wide every channel is at every step or frame, as a share of the grid."""
    shown = table.shares
    per_row = -(-len(shown) // MAX_BARS)
    starts = np.arange(0, len(shown), per_row)
    shown = np.maximum.reduceat(shown, starts, axis=0)
    together = f"<br>{per_row} neighbours per row, the widest kept" if per_row > 1 else ""
    across = np.arange(1, shown.shape[1] + 1)
    return Drawing(
        Axis("denoising step" if table.by == "step" else "frame", 0.5, len(across) + 0.5, grid=False),
        Axis(f"input channel, widest on top{together}", -0.5, len(table.shares) - 0.5, grid=False),
        (
            Heatmap(
                across,
                starts + (per_row - 1) / 2,
                shown,
                "share of the grid",
                0.0,
                1.0,
                row="place",
                column=table.by,
                format=".1%",
            ),
        ),
        alt_text=(
            f"Width of the {len(table.shares)} channels of {table.site} by {table.by}, as a share of the grid. The"
            f" widest reaches {table.shares.max():.0%}, the median {np.median(table.shares):.0%}."
        ),
        keep_zoom=f"{table.site} {table.by}",
    )


def thresholds(table: ThresholdTable) -> Drawing:
    """The error of the layer's output and the channels' mean coverage, over SCRI's threshold."""
    best, chosen = table.search.best, table.chosen
    return Drawing(
        Axis("threshold t (value, dimensionless)"),
        Axis("squared error of the output, relative to no scaling"),
        (
            Line(table.thresholds, table.relative_errors, DATA, label="error of the output"),
            Line(table.thresholds, table.coverage, QUANTIZED, label="mean coverage (0 to 1)", dash="dash"),
            Points(
                table.thresholds[[best]],
                table.relative_errors[[best]],
                DATA,
                label="least error",
                symbol="diamond",
                size=10,
            ),
            Rule("x", chosen, label=f"shown: t = {number(chosen)}"),
        ),
        alt_text=(
            f"Error of the output of {table.site} over SCRI's threshold. It is least at"
            f" {number(table.thresholds[best])}, {table.relative_errors[best]:.2f} times that without scaling; shown is"
            f" {number(chosen)}."
        ),
        height=300,
        keep_zoom=f"{table.site} thresholds",
    )


def _ranges_alt(table: ChannelTable, per_bar: int) -> str:
    when = "over all steps" if table.step is None else f"at step {table.step + 1}"
    if table.frame is not None:
        when += f", frame {table.frame + 1}"
    bottom, top = table.grid_ends
    narrow, wide = np.argmin(table.coverage), np.argmax(table.coverage)
    bars = "one bar per channel" if per_bar == 1 else f"{per_bar} channels per bar"
    return (
        f"Ranges of the {len(table.channel)} input channels of {table.site} {when}, {bars}. The"
        f" {table.form.bits}-bit grid reaches from {bottom:.3g} to {top:.3g}. Narrowest: channel"
        f" {table.channel[narrow]}, {table.low[narrow]:.3g} to {table.high[narrow]:.3g}; widest: channel"
        f" {table.channel[wide]}, {table.low[wide]:.3g} to {table.high[wide]:.3g}."
    )
