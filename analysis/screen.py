"""Drawings as plotly figures, for the page and for notebooks.

Backgrounds are transparent and texts have no colours, so that a page can show them in light and dark;
`layout.meta["alt_text"]` holds the figure in words.
"""

from __future__ import annotations

import base64
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import FAINT, Axis, Band, Bars, Drawing, Heatmap, Line, Points, Rule

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHADE = 0.4  # opacity below a filled line
MARGIN = {"l": 58, "r": 12, "t": 28, "b": 52}


def figure(drawing: Drawing) -> Figure:
    """`drawing` as a plotly figure."""
    import plotly.graph_objects as go

    return go.Figure(payload(drawing))


def payload(drawing: Drawing) -> dict[str, Any]:
    """`drawing` as plotly's JSON, {"data": ..., "layout": ...}, arrays packed as binary.

    Plain dictionaries: plotly's own objects check every value, which takes longer than all the rest.
    """
    traces = [_trace(mark) for mark in drawing.marks if not isinstance(mark, (Rule, Band))]
    shapes = [_shape(mark) for mark in drawing.marks if isinstance(mark, (Rule, Band))]
    labels = [_label(mark, drawing) for mark in drawing.marks if isinstance(mark, (Rule, Band)) and mark.label]
    named = [mark for mark in drawing.marks if isinstance(mark, (Bars, Line, Points)) and mark.label]
    legend = len(named) > 1
    x, y = _axis(drawing.x, drawing.keep_zoom), _axis(drawing.y, drawing.keep_zoom)
    named_rows = next((mark.names for mark in drawing.marks if isinstance(mark, Heatmap) and mark.names), ())
    if named_rows:  # rows are then known by name, also to a click
        y |= {"type": "category", "tickvals": [named_rows[int(at)] for at, _ in drawing.y.ticks or ()]}
    if drawing.square:
        x |= {"constrain": "domain"}
        y |= {"constrain": "domain", "scaleanchor": "x"}
    top = MARGIN["t"] + (16 if drawing.title else 0) + (22 if legend else 0)
    layout: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 13},
        "height": drawing.height,
        "margin": {**MARGIN, "t": top},
        "hoverlabel": {"font": {"family": "inherit"}},
        "hovermode": "x" if any(isinstance(mark, Bars) or _filled(mark) for mark in drawing.marks) else "closest",
        "barmode": "overlay",
        "bargap": 0,
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "uirevision": drawing.keep_zoom,
        "shapes": shapes,
        "annotations": labels,
        "xaxis": x,
        "yaxis": y,
        "meta": {"alt_text": drawing.alt_text},
    }
    if drawing.title:
        layout["title"] = {"text": drawing.title, "x": 0, "xref": "paper", "font": {"size": 14}}
    return {"data": traces, "layout": layout}


def _axis(axis: Axis, keep_zoom: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "title": {"text": axis.title, "font": {"size": 13}, "standoff": 8},
        "type": "log" if axis.log else "linear",
        "gridcolor": FAINT,
        "zerolinecolor": FAINT,
        "zeroline": axis.grid and not axis.log,
        "showgrid": axis.grid,
        "automargin": True,
        "tickangle": 0,
        "uirevision": keep_zoom,
    }
    if axis.low is not None and axis.high is not None:
        ends = [float(np.log10(end)) if axis.log else float(end) for end in (axis.low, axis.high)]
        made["range"] = ends[::-1] if axis.reverse else ends
    elif axis.reverse:
        made["autorange"] = "reversed"
    if axis.log:
        made |= {"dtick": 1, "exponentformat": "power"}
        made["tickfont"] = {"size": 10.4}  # plotly writes powers a quarter larger than it is told
    if axis.ticks is not None:
        made |= {"tickvals": [float(at) for at, _ in axis.ticks], "ticktext": [text for _, text in axis.ticks]}
    return made


@singledispatch
def _trace(mark: Any) -> dict[str, Any]:
    raise TypeError(f"no trace for {type(mark).__name__}")


@_trace.register
def _(mark: Bars) -> dict[str, Any]:
    return {
        "type": "bar",
        "x": _packed(mark.x),
        "base": np.asarray(mark.low, np.float32).tolist(),  # plotly.js reads no packed array here
        "y": _packed(mark.high - mark.low),
        "width": mark.width,
        "opacity": mark.opacity,
        "name": mark.label,
        "marker": {"color": mark.color, "line": {"width": 0}},
        **_hover(mark.hover),
    }


@_trace.register
def _(mark: Line) -> dict[str, Any]:
    shape = "hv" if mark.stepped else "linear"
    shade = {"fill": "tozeroy", "fillcolor": _faded(mark.color, SHADE)} if mark.filled else {}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": _packed(mark.x),
        "y": _packed(mark.y),
        "name": mark.label,
        "line": {"color": mark.color, "width": 1 if mark.filled else 2, "dash": mark.dash, "shape": shape},
        **shade,
        **_hover(mark.hover),
    }


@_trace.register
def _(mark: Points) -> dict[str, Any]:
    made = {
        "type": "scatter",
        "mode": "markers",
        "x": _packed(mark.x),
        "y": _packed(mark.y),
        "name": mark.label,
        "marker": {"color": mark.color, "size": mark.size, "symbol": mark.symbol},
        **_hover(mark.hover),
    }
    return made | ({"meta": {"names": list(mark.names)}} if mark.names else {})


@_trace.register
def _(mark: Heatmap) -> dict[str, Any]:
    shown = "customdata" if mark.log else "z"
    at = "%{y}" if mark.names else f"{mark.row} %{{y:.0f}}"
    bar: dict[str, Any] = {
        "title": {"text": mark.label, "side": "top", "font": {"size": 13}},
        "thickness": 12,
        "outlinewidth": 0,
        "len": 1,
    }
    z, ends = mark.z, (mark.low, mark.high)
    if mark.log:
        with np.errstate(divide="ignore", invalid="ignore"):
            z, ends = np.log10(mark.z), (np.log10(mark.low), np.log10(mark.high))
        powers = range(int(np.ceil(ends[0])), int(np.floor(ends[1])) + 1)
        bar |= {"tickvals": [*powers], "ticktext": [f"{10.0**power:g}" for power in powers]}
    made: dict[str, Any] = {
        "type": "heatmap",
        "x": _packed(mark.x),
        "y": list(mark.names) or _packed(mark.y),
        "z": _packed(z),
        "zmin": float(ends[0]),
        "zmax": float(ends[1]),
        "colorscale": "Cividis",
        "hoverongaps": False,
        "colorbar": bar,
        "hovertemplate": f"{at}<br>{mark.column} %{{x:.0f}}<br>%{{{shown}:{mark.format}}}<extra></extra>",
    }
    if mark.log:
        made["customdata"] = _packed(mark.z)
    return made


def _shape(mark: Rule | Band) -> dict[str, Any]:
    if isinstance(mark, Band):
        where = {"x0": mark.low, "x1": mark.high, "y0": 0, "y1": 1, "yref": "paper"}
        return {"type": "rect", "fillcolor": mark.color, "opacity": 0.3, "line": {"width": 0}, **where}
    other = "x" if mark.axis == "y" else "y"
    where = {f"{mark.axis}0": mark.value, f"{mark.axis}1": mark.value, f"{other}0": 0, f"{other}1": 1}
    line = {"color": mark.color, "width": mark.width}
    return {"type": "line", f"{other}ref": "paper", "layer": "below", "line": line, **where}


def _label(mark: Rule | Band, drawing: Drawing) -> dict[str, Any]:
    text = {"text": mark.label, "showarrow": False, "font": {"size": 12}}
    if isinstance(mark, Band):
        middle = (mark.low + mark.high) / 2
        return {**text, "x": middle, "y": 1, "yref": "paper", "xanchor": "center", "yanchor": "bottom"}
    anchor = "bottom" if mark.side == "above" else "top"
    # Of logarithmic axes, annotations want the logarithm, and shapes the value itself.
    value = float(np.log10(mark.value)) if getattr(drawing, mark.axis).log else mark.value
    if mark.axis == "y":
        return {**text, "x": 1, "xref": "paper", "xanchor": "right", "y": value, "yanchor": anchor}
    return {**text, "x": value, "xanchor": "center", "y": 1, "yref": "paper", "yanchor": "bottom"}


def _filled(mark: Any) -> bool:
    return isinstance(mark, Line) and mark.filled


def _faded(color: str, opacity: float) -> str:
    """A colour "#rrggbb" as one that lets others shine through."""
    return f"rgba({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))}, {opacity})"


def _hover(texts: tuple[str, ...]) -> dict[str, Any]:
    if not texts:
        return {"hoverinfo": "skip"}
    return {"hovertext": list(texts), "hovertemplate": "%{hovertext}<extra></extra>"}


def _packed(values: np.ndarray) -> dict[str, Any]:
    """A typed array as plotly.js reads it: base64, in 4 bytes a value."""
    array = np.ascontiguousarray(values, np.float32)
    packed: dict[str, Any] = {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode("ascii")}
    return packed | ({"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {})
