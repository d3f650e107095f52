"""Drawings as matplotlib figures, for papers: PDF, SVG or PNG, with the screen's numbers and colours."""

from __future__ import annotations

import io
import threading
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Axis, Band, Bars, Drawing, Heatmap, Line, Points, Rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png"}
"""File formats and their media types."""

WIDTH = 5.5  # inches; a column and a half of most journals
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text that stays text: type 3 fonts are refused by many journals
    "svg.fonttype": "none",
    "svg.hashsalt": "qvd",  # equal figures make equal files
}
MARKERS = {"circle": "o", "diamond": "D", "cross": "x"}
_STYLING = threading.Lock()  # matplotlib's settings are the whole process's
DASHES: dict[str, Any] = {"solid": "-", "dot": ":", "dash": "--"}


def figure(drawing: Drawing) -> Figure:
    """`drawing` as a matplotlib figure, not registered with pyplot."""
    import matplotlib

    with _STYLING, matplotlib.rc_context(STYLE):
        return _figure(drawing)


def _figure(drawing: Drawing) -> Figure:
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, WIDTH * drawing.height / 640), layout="constrained")
    axes = made.add_subplot()
    for mark in drawing.marks:
        _draw(mark, axes)
    _axis(axes.xaxis, axes.set_xlim, axes.set_xscale, drawing.x)
    _axis(axes.yaxis, axes.set_ylim, axes.set_yscale, drawing.y)
    if drawing.square:
        axes.set_aspect("equal")
    if drawing.title:
        axes.set_title(drawing.title, loc="left", fontsize=9)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="best")
    return made


def as_file(drawing: Drawing, form: str) -> bytes:
    """`drawing` as a file of one of `FORMATS`; equal drawings give equal files."""
    import matplotlib

    file = io.BytesIO()
    dates: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    with _STYLING, matplotlib.rc_context(STYLE):
        _figure(drawing).savefig(file, format=form, dpi=300, metadata=dates[form])
    return file.getvalue()


def _axis(axis: Any, set_limits: Any, set_scale: Any, wanted: Axis) -> None:
    axis.set_label_text(wanted.title.replace("<br>", "\n"))
    if wanted.log:
        set_scale("log")
    if wanted.low is not None and wanted.high is not None:
        ends = (wanted.low, wanted.high)
        set_limits(*(ends[::-1] if wanted.reverse else ends))
    elif wanted.reverse:
        axis.set_inverted(True)
    if wanted.ticks is not None:
        axis.set_ticks([at for at, _ in wanted.ticks], [text for _, text in wanted.ticks])


def _edges(centres: np.ndarray) -> np.ndarray:
    """Where cells with these centres [N], evenly spaced, begin and end, [N + 1]; one alone is one unit wide."""
    half = float(centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
    return np.append(centres - half, centres[-1] + half)


@singledispatch
def _draw(mark: Any, axes: Any) -> None:
    raise TypeError(f"no drawing of {type(mark).__name__}")


@_draw.register
def _(mark: Bars, axes: Any) -> None:
    axes.bar(
        mark.x,
        mark.high - mark.low,
        mark.width,
        bottom=mark.low,
        color=mark.color,
        alpha=mark.opacity,
        linewidth=0,
        label=mark.label or None,
    )


@_draw.register
def _(mark: Line, axes: Any) -> None:
    axes.plot(
        mark.x,
        mark.y,
        color=mark.color,
        linestyle=DASHES[mark.dash],
        linewidth=0.6 if mark.filled else 1.2,
        drawstyle="steps-post" if mark.stepped else "default",
        label=mark.label or None,
    )
    if mark.filled:
        bottom = np.nanmin(mark.y)
        step = "post" if mark.stepped else None
        axes.fill_between(mark.x, bottom, mark.y, step=step, color=mark.color, alpha=0.4, linewidth=0)


@_draw.register
def _(mark: Points, axes: Any) -> None:
    size = (0.6 * mark.size) ** 2
    axes.scatter(
        mark.x, mark.y, s=size, marker=MARKERS[mark.symbol], color=mark.color, label=mark.label or None, zorder=3
    )


@_draw.register
def _(mark: Heatmap, axes: Any) -> None:
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if mark.log else Normalize)(mark.low, mark.high)
    z = np.ma.masked_invalid(mark.z)
    # Pixels rather than thousands of vector cells, which viewers draw with gaps between them.
    image = axes.pcolormesh(_edges(mark.x), _edges(mark.y), z, norm=norm, cmap="cividis", rasterized=True)
    axes.figure.colorbar(image, ax=axes, label=mark.label, pad=0.02).outline.set_visible(False)


@_draw.register
def _(mark: Rule, axes: Any) -> None:
    (axes.axhline if mark.axis == "y" else axes.axvline)(mark.value, color=mark.color, linewidth=0.8, zorder=0)
    if not mark.label:
        return
    if mark.axis == "y":
        place = {"ha": "right", "va": "bottom" if mark.side == "above" else "top"}
        axes.text(1, mark.value, mark.label, transform=axes.get_yaxis_transform(), fontsize=7, **place)
    else:
        axes.text(mark.value, 1, mark.label, transform=axes.get_xaxis_transform(), fontsize=7, ha="center", va="bottom")


@_draw.register
def _(mark: Band, axes: Any) -> None:
    axes.axvspan(mark.low, mark.high, color=mark.color, alpha=0.3, linewidth=0, zorder=0)
    if mark.label:
        middle = (mark.low + mark.high) / 2
        axes.text(middle, 1, mark.label, transform=axes.get_xaxis_transform(), fontsize=7, ha="center", va="bottom")
