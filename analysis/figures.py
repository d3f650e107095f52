"""The figures, drawn with plotly from the tables of this package; every drawn number is one of theirs.

Each function returns a `plotly.graph_objects.Figure` with transparent backgrounds and no colours of text,
so that a page can show it in light and dark, and with `layout.meta["alt_text"]`: the same in words.
Blue is the model's data and vermilion is quantization, as everywhere in the app (Okabe and Ito's palette,
told apart under every common colour blindness, and 3:1 or more against white and near-black).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.channels import ChannelTable
from analysis.temporal import Histogram, TemporalTable, histogram, symlog

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DATA, GRID, FAINT = "#0072b2", "#d55e00", "rgba(128,128,128,0.28)"
MAX_BARS = 512
MAX_BITS_WITH_LEVELS = 5
SORT_WORDS = {"channel": "by number", "range": "narrowest range first", "centre": "lowest centre first"}


def channel_ranges(table: ChannelTable) -> Figure:
    """One vertical bar per channel, from its smallest to its largest value, before the quantization grid.

    Above 512 channels, neighbours in the order shown share a bar that keeps their extremes.
    """
    import plotly.graph_objects as go

    per_bar = -(-len(table.channel) // MAX_BARS)
    starts = np.arange(0, len(table.channel), per_bar)
    low, high = np.minimum.reduceat(table.low, starts), np.maximum.reduceat(table.high, starts)
    place = "channel %{customdata[0]:.0f}<br>%{customdata[3]:.4g} to %{customdata[4]:.4g}"
    detail = "<br>%{customdata[1]:.1%} of the grid, up to %{customdata[2]:,.0f} codes<extra></extra>"
    columns = [table.channel, table.coverage, table.codes, table.low, table.high]
    if per_bar > 1:
        place = "channels at places %{customdata[0]:.0f} to %{customdata[1]:.0f}<br>"
        detail = "%{customdata[2]:.4g} to %{customdata[3]:.4g}<extra></extra>"
        columns = [starts, np.minimum(starts + per_bar, len(table.channel)) - 1, low, high]
    bars = go.Bar(
        x=starts.astype(np.float32),
        base=low.tolist(),  # plotly.js reads no packed array here
        y=high - low,
        width=per_bar * (0.8 if len(starts) <= 160 else 1.0),
        offset=0 if per_bar > 1 else None,
        marker={"color": DATA, "line": {"width": 0}},
        customdata=np.stack(columns, axis=1).astype(np.float32),
        hovertemplate=place + detail,
    )
    bottom, top = table.grid_ends
    ends = [min(bottom, float(low.min())), max(top, float(high.max()))]
    room = 0.09 * (ends[1] - ends[0])
    levels = table.levels() if table.form.bits <= MAX_BITS_WITH_LEVELS else np.array([])
    beside = {"x": 1, "xref": "paper", "xanchor": "right"}
    figure = go.Figure(
        bars,
        layout=_house(
            alt_text=_channels_alt(table, per_bar),
            hovermode="x",
            shapes=[
                *(_line("y", level, layer="below", opacity=0.6) for level in levels),
                *(_line("y", end, layer="below", line={"color": GRID, "width": 1.5}) for end in (bottom, top)),
            ],
            annotations=[
                _label(f"highest code: {_number(top)}", y=top, yanchor="bottom", **beside),
                _label(f"lowest code: {_number(bottom)}", y=bottom, yanchor="top", **beside),
            ],
        ),
    )
    together = f"<br>{per_bar} neighbours per bar, extremes kept" if per_bar > 1 else ""
    figure.update_xaxes(
        title_text=f"input channel, {SORT_WORDS[table.sort]}{together}",
        range=[-1, len(table.channel)],
        showgrid=False,
        uirevision=f"{table.site} {table.sort}",
    )
    figure.update_yaxes(
        title_text="value (dimensionless)",
        range=[ends[0] - room, ends[1] + room],
        uirevision=table.site,
        showgrid=len(levels) == 0,
        zeroline=True,
    )
    return figure


def feature_distribution(table: TemporalTable) -> Figure:
    """How often which value occurs among all temporal features, and which of them the grid rounds to zero.

    The value axis is symmetric logarithmic (`Histogram`), the count axis logarithmic.
    """
    import plotly.graph_objects as go

    counted = histogram(table.values)
    marks = symlog(counted.edges, counted.unit)
    filled = counted.counts > 0
    half = float(symlog(np.array(table.scale / 2), counted.unit))
    band = [max(-half, float(marks[0])), min(half, float(marks[-1]))]
    levels = symlog(table.levels if table.bits <= MAX_BITS_WITH_LEVELS else np.array([]), counted.unit)
    text = f"rounded to zero at {table.bits} bits: {table.zero_share:.1%}"
    figure = go.Figure(
        go.Bar(
            x=((marks[:-1] + marks[1:]) / 2)[filled].astype(np.float32),
            y=counted.counts[filled].astype(np.int32),
            width=float(marks[1] - marks[0]),
            opacity=0.8,
            marker={"color": DATA, "line": {"width": 0}},
            customdata=np.stack([counted.edges[:-1], counted.edges[1:]], axis=1)[filled].astype(np.float32),
            hovertemplate="%{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:,} values<extra></extra>",
        ),
        layout=_house(
            alt_text=_distribution_alt(table),
            bargap=0,
            hovermode="x",
            shapes=[_band(*band), *(_line("x", level) for level in levels)],
            annotations=[_label(text, x=sum(band) / 2, y=1, yref="paper", xanchor="center", yanchor="bottom")],
        ),
    )
    ticks = _symlog_ticks(counted)
    figure.update_xaxes(
        title_text="value (dimensionless, symmetric log axis)",
        tickvals=[float(symlog(np.array(t), counted.unit)) for t in ticks],
        ticktext=[_number(t) for t in ticks],
        tickangle=0,
        range=[float(marks[0]), float(marks[-1])],
        showgrid=len(levels) == 0,
    )
    figure.update_yaxes(title_text="values per bin (log axis)", type="log", dtick=1, range=_log_range(counted.counts))
    return figure


def step_similarity(matrix: np.ndarray, name: str, lowest: float) -> Figure:
    """How alike the temporal features of any two steps are.

    Args:
        matrix: cosines, fp32 [T, T], rows and columns in sampling order.
        name: which features, such as "Full precision".
        lowest: where the colour scale begins; it ends at 1. Give figures to be compared the same one.
    """
    import plotly.graph_objects as go

    steps = np.arange(1, len(matrix) + 1, dtype=np.float32)
    title = {"text": name, "x": 0, "xref": "paper", "font": {"size": 14}}
    bar_title = {"text": "cosine", "side": "top", "font": {"size": 13}}
    figure = go.Figure(
        go.Heatmap(
            x=steps,
            y=steps,
            z=matrix.astype(np.float32),
            zmin=lowest,
            zmax=1.0,
            colorscale="Cividis",
            colorbar={"title": bar_title, "thickness": 12, "outlinewidth": 0, "len": 1},
            hovertemplate="steps %{y:.0f} and %{x:.0f}<br>cosine similarity %{z:.4f}<extra></extra>",
        ),
        layout=_house(alt_text=_similarity_alt(matrix, name), title=title, margin={**_MARGIN, "t": 44}),
    )
    span = [0.5, len(matrix) + 0.5]
    axis = {"title_text": "denoising step", "showgrid": False, "nticks": 6, "constrain": "domain"}
    figure.update_xaxes(**axis, range=span)
    figure.update_yaxes(**axis, range=span[::-1], scaleanchor="x")
    return figure


def _house(*, alt_text: str, **more: Any) -> dict[str, Any]:
    """The layout all figures share; `uirevision` keeps zoom across updates."""
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 13},
        "height": 360,
        "margin": _MARGIN,
        "hoverlabel": {"font": {"family": "inherit"}},
        "showlegend": False,
        "uirevision": "kept",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "meta": {"alt_text": alt_text},
        **more,
    }


_MARGIN = {"l": 58, "r": 12, "t": 28, "b": 52}
_AXIS = {
    "gridcolor": FAINT,
    "zerolinecolor": FAINT,
    "zeroline": False,
    "automargin": True,
    "title": {"font": {"size": 13}, "standoff": 8},
}


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _label(text: str, **where: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 12}, **where}


def _line(axis: str, value: float, **more: Any) -> dict[str, Any]:
    """A line across the plot at `value` of `axis`; as a dictionary, since `add_hline` takes milliseconds each."""
    other = "x" if axis == "y" else "y"
    where = {f"{axis}0": float(value), f"{axis}1": float(value), f"{other}0": 0, f"{other}1": 1}
    return {"type": "line", f"{other}ref": "paper", "line": {"color": GRID, "width": 1}, **where, **more}


def _band(left: float, right: float) -> dict[str, Any]:
    return {
        "type": "rect",
        **{"x0": left, "x1": right, "y0": 0, "y1": 1, "yref": "paper"},
        **{"fillcolor": GRID, "opacity": 0.3, "line": {"width": 0}},
    }


def _symlog_ticks(counted: Histogram) -> list[float]:
    """Round values along a symmetric logarithmic axis: 0, powers of ten, then 5s and 2s where there is room."""
    ends = symlog(counted.edges[[0, -1]], counted.unit)
    lowest = round(np.log10(counted.unit)) - 2
    highest = int(np.log10(np.abs(counted.edges).max())) + 1
    sizes = [digit * 10.0**power for digit in (1, 5, 2) for power in range(highest, lowest, -1)]
    kept: list[float] = []
    for tick in [0.0, *(sign * size for size in sizes for sign in (1, -1))]:
        place = float(symlog(np.array(tick), counted.unit))
        others = [float(symlog(np.array(k), counted.unit)) for k in kept]
        roomy = all(abs(place - other) >= 0.14 * (ends[1] - ends[0]) for other in others)
        if ends[0] <= place <= ends[1] and roomy:
            kept.append(tick)
    return sorted(kept)


def _log_range(counts: np.ndarray) -> list[float]:
    """From just below one value to just above the fullest bin, as plotly wants it: in powers of ten."""
    return [float(np.log10(0.7)), float(np.log10(1.3 * counts.max()))]


def _channels_alt(table: ChannelTable, per_bar: int) -> str:
    when = "over all steps" if table.step is None else f"at step {table.step + 1}"
    bottom, top = table.grid_ends
    narrow, wide = np.argmin(table.coverage), np.argmax(table.coverage)
    bars = "one bar per channel" if per_bar == 1 else f"{per_bar} channels per bar"
    return (
        f"Ranges of the {len(table.channel)} input channels of {table.site} {when}, {bars}. The"
        f" {table.form.bits}-bit grid reaches from {bottom:.3g} to {top:.3g}. Narrowest: channel"
        f" {table.channel[narrow]}, {table.low[narrow]:.3g} to {table.high[narrow]:.3g}; widest: channel"
        f" {table.channel[wide]}, {table.low[wide]:.3g} to {table.high[wide]:.3g}."
    )


def _distribution_alt(table: TemporalTable) -> str:
    return (
        f"Histogram of {table.values.size:,} values of temporal features, from {table.values.min():.3g} to"
        f" {table.values.max():.3g}, median {np.median(table.values):.3g}. A {table.bits}-bit grid rounds values"
        f" within {table.scale / 2:.2g} of zero to zero: {table.zero_share:.1%}."
    )


def _similarity_alt(matrix: np.ndarray, name: str) -> str:
    lowest = np.unravel_index(np.argmin(matrix), matrix.shape)
    return (
        f"{name}: cosine similarity between the temporal features of {len(matrix)} steps. Lowest"
        f" {matrix.min():.3f}, between steps {lowest[0] + 1} and {lowest[1] + 1}; mean {matrix.mean():.3f}."
    )
