"""What a figure shows, free of any plotting library: marks on a pair of axes, and the same in words.

Every view of this package describes its figure once, as a `Drawing` of its table. `analysis.screen` makes a
plotly figure of it and `analysis.paper` a matplotlib one, so the two cannot disagree.

Colours have one meaning everywhere: `DATA` is the full-precision model, `QUANTIZED` what quantization does
(Okabe and Ito's palette, told apart under every common colour blindness, and 3:1 or more against white and
near-black).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

DATA, QUANTIZED, OTHER, FOURTH = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
FAINT = "rgba(128,128,128,0.28)"


@dataclass(frozen=True, eq=False)
class Bars:
    """Vertical bars from `low` to `high` at `x`, each [N] in data units, all `width` wide."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    width: float
    color: str = DATA
    opacity: float = 1.0
    label: str = ""
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Line:
    """A polyline through (x, y), each [N]; `stepped` keeps y until the next x, `filled` shades what is below."""

    x: np.ndarray
    y: np.ndarray
    color: str = DATA
    label: str = ""
    dash: Literal["solid", "dot", "dash"] = "solid"
    stepped: bool = False
    filled: bool = False
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Points:
    """Markers at (x, y), each [N]; `names` are what a click on one reports, `size` their width in pixels."""

    x: np.ndarray
    y: np.ndarray
    color: str = DATA
    label: str = ""
    symbol: Literal["circle", "diamond", "cross"] = "circle"
    size: float = 7
    hover: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Values z [rows, columns] at centres y [rows] and x [columns], coloured from `low` to `high`.

    Attributes:
        z: NaN where there is no value.
        label: of the colour bar, with the unit.
        log: colours follow the logarithm of z, which is positive.
        row, column: what a row and a column is, for the reader who points at one.
        names: of the rows; what a click reports.
        format: of z, in d3's and Python's common notation.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    label: str
    low: float
    high: float
    row: str
    column: str
    log: bool = False
    names: tuple[str, ...] = ()
    format: str = ".3g"


@dataclass(frozen=True)
class Rule:
    """A straight line across the plot at a value of one axis, and a word beside it."""

    axis: Literal["x", "y"]
    value: float
    color: str = QUANTIZED
    width: float = 1.5
    label: str = ""
    side: Literal["above", "below"] = "above"


@dataclass(frozen=True)
class Band:
    """A shaded stretch of the x axis."""

    low: float
    high: float
    label: str = ""
    color: str = QUANTIZED


@dataclass(frozen=True)
class Axis:
    """One axis: its title with the unit, and what it spans.

    Attributes:
        low, high: in data units; None for what the marks need.
        log: base-10 logarithmic.
        ticks: (position, text) pairs in place of the library's own.
        reverse: upside down, as for matrices.
    """

    title: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    ticks: tuple[tuple[float, str], ...] | None = None
    reverse: bool = False
    grid: bool = True


Mark = Bars | Line | Points | Heatmap | Rule | Band


@dataclass(frozen=True, eq=False)
class Drawing:
    """One figure.

    Attributes:
        marks: drawn in this order.
        alt_text: the figure in words, for people who cannot see it.
        title: above the plot, where several figures stand side by side.
        height: CSS pixels.
        square: both axes have one scale.
        keep_zoom: figures of one name keep the reader's zoom when they replace each other.
    """

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    alt_text: str
    title: str = ""
    height: int = 360
    square: bool = False
    keep_zoom: str = "kept"


def number(value: float) -> str:
    """Three significant digits, with a true minus sign."""
    return f"{value:.3g}".replace("-", "−")
