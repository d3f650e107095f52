"""Figures of temporal features: their distribution, what two grids make of them, and the search of HTDQ."""

from __future__ import annotations

import numpy as np

from analysis.drawing import DATA, OTHER, QUANTIZED, Axis, Band, Bars, Drawing, Heatmap, Line, Points, Rule, number
from analysis.htdq import HTDQTable
from analysis.temporal import Histogram, TemporalTable, histogram, symlog

MAX_BITS_WITH_LEVELS = 5
MAX_PLACES = 256
UNIFORM, HIDI = "uniform grid", "HiDi-TQ"


def distribution(table: TemporalTable) -> Drawing:
    """How often which value occurs among all temporal features, and which of them a uniform grid rounds to zero.

    The value axis is symmetric logarithmic (`Histogram`), the count axis logarithmic.
    """
    counted = histogram(table.values)
    marks = symlog(counted.edges, counted.unit)
    filled = counted.counts > 0
    half = float(symlog(np.array(table.scale / 2), counted.unit))
    band = max(-half, float(marks[0])), min(half, float(marks[-1]))
    levels = symlog(table.levels if table.bits <= MAX_BITS_WITH_LEVELS else np.array([]), counted.unit)
    columns = (counted.edges[:-1], counted.edges[1:], counted.counts)
    bins = zip(*(column[filled] for column in columns), strict=True)
    hover = tuple(f"{number(a)} to {number(b)}<br>{count:,} values" for a, b, count in bins)
    counts = counted.counts[filled].astype(float)
    floor = 0.7  # a log axis has no zero to stand on
    return Drawing(
        Axis(
            "value (dimensionless, symmetric log axis)",
            float(marks[0]),
            float(marks[-1]),
            ticks=_symlog_ticks(counted),
            grid=len(levels) == 0,
        ),
        Axis("values per bin (log axis)", floor, 1.3 * float(counts.max()), log=True),
        (
            Band(*band, label=f"rounded to zero at {table.bits} bits: {table.zero_share:.1%}"),
            *(Rule("x", float(level), width=1) for level in levels),
            Bars(
                ((marks[:-1] + marks[1:]) / 2)[filled],
                np.full(len(counts), floor),
                counts,
                float(marks[1] - marks[0]),
                opacity=0.8,
                hover=hover,
            ),
        ),
        alt_text=_distribution_alt(table),
    )


def staircases(table: HTDQTable) -> Drawing:
    """What becomes of every value on both grids; the identity is what no quantization would do."""
    counted = histogram(table.values)
    x, flat, log = (symlog(row, counted.unit) for row in table.stairs)
    low, high = float(x[0]), float(x[-1])
    ticks = _symlog_ticks(counted)
    beyond = np.concatenate([x, flat, log])  # the outermost values may be rounded outwards
    return Drawing(
        Axis("value (dimensionless, symmetric log axis)", low, high, ticks=ticks),
        Axis("value after rounding", float(beyond.min()), float(beyond.max()), ticks=ticks),
        (
            Line(x, x, "#888888", label="full precision", dash="dot"),
            Line(x, flat, QUANTIZED, label=UNIFORM),
            Line(x, log, OTHER, label=HIDI),
        ),
        alt_text=(
            f"Staircases of both {table.bits}-bit grids over the values' range. The uniform grid's steps are equally"
            " wide; HiDi-TQ's widen with the distance from zero."
        ),
        height=320,
    )


def code_use(table: HTDQTable) -> Drawing:
    """Share of the values each code stands for, codes in the order of their values, from lowest to highest."""
    smallest = 0.5 / table.values.size
    lines = []
    for quantized, color, label in ((table.uniform, QUANTIZED, UNIFORM), (table.logarithmic, OTHER, HIDI)):
        count = len(quantized.use)
        per_place = -(-count // MAX_PLACES)
        starts = np.arange(0, count, per_place)
        shares = np.add.reduceat(quantized.use, starts) / quantized.use.sum()
        words = zip(quantized.levels[starts], shares, strict=True)
        hover = tuple(f"{label}: {number(level)}<br>{share:.2%} of the values" for level, share in words)
        shown = np.maximum(shares, smallest)  # one area rather than hundreds of bars: drawn twice as fast
        lines.append(
            Line(
                np.append(starts / count, 1),
                np.append(shown, shown[-1]),
                color,
                label,
                stepped=True,
                filled=True,
                hover=(*hover, hover[-1]),
            )
        )
    return Drawing(
        Axis("code, by its value (0: lowest, 1: highest)", 0, 1),
        Axis("share of the values (log axis)", smallest, 1, log=True),
        tuple(lines),
        alt_text=(
            f"Use of codes at {table.bits} bits: the uniform grid uses {table.uniform.used} of"
            f" {len(table.uniform.use)}, HiDi-TQ {table.logarithmic.used} of {len(table.logarithmic.use)}."
        ),
        height=320,
    )


def search(table: HTDQTable) -> Drawing:
    """K and its two parts over the relaxation coefficient, with the chosen one."""
    found = table.columns()
    reference = table.td_score or 1.0
    lost = np.maximum(0, 1 - found["td_score"] / reference)
    x = found["coefficient"]
    ends = min(float(x.min()), table.coefficient) * 0.95, max(float(x.max()), table.coefficient) * 1.05
    chosen = np.array([table.coefficient]), np.array([table.logarithmic.k])
    return Drawing(
        Axis("relaxation coefficient α (log axis)", *ends, log=True),
        Axis("relative error (log axis)", log=True),
        (
            Line(x, _positive(found["k"]), "#888888", label="K"),
            Line(x, _positive(found["l2"]), DATA, label="squared error", dash="dash"),
            Line(x, _positive(lost), OTHER, label="loss of TDScore", dash="dot"),
            Points(chosen[0], _positive(chosen[1]), QUANTIZED, label="chosen", symbol="diamond", size=11),
            Rule("x", table.coefficient, label=f"α = {number(table.coefficient)}"),
        ),
        alt_text=(
            f"K over the relaxation coefficient from {x.min():.2g} to {x.max():.2g}: least at"
            f" {x[np.argmin(found['k'])]:.3g}; chosen is {table.coefficient:.3g}."
        ),
        height=320,
    )


def similarity(matrix: np.ndarray, name: str, lowest: float) -> Drawing:
    """How alike the temporal features of any two steps are.

    Args:
        matrix: cosines, fp32 [T, T], rows and columns in sampling order.
        name: which features, such as "Full precision".
        lowest: where the colour scale begins; it ends at 1. Give figures to be compared the same one.
    """
    steps = np.arange(1, len(matrix) + 1)
    span = 0.5, len(matrix) + 0.5
    return Drawing(
        Axis("denoising step", *span, grid=False),
        Axis("denoising step", *span, reverse=True, grid=False),
        (Heatmap(steps, steps, matrix, "cosine", lowest, 1.0, row="step", column="step", format=".4f"),),
        alt_text=_similarity_alt(matrix, name),
        title=name,
        height=300,
        square=True,
    )


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show; NaN for the rest."""
    return np.where(values > 0, values, np.nan)


def _symlog_ticks(counted: Histogram) -> tuple[tuple[float, str], ...]:
    """Round values along a symmetric logarithmic axis: 0, powers of ten, then 5s and 2s where there is room."""
    ends = symlog(counted.edges[[0, -1]], counted.unit)
    lowest = round(np.log10(counted.unit)) - 2
    highest = int(np.log10(np.abs(counted.edges).max())) + 1
    sizes = [digit * 10.0**power for digit in (1, 5, 2) for power in range(highest, lowest, -1)]
    kept: dict[float, float] = {}
    for tick in [0.0, *(sign * size for size in sizes for sign in (1, -1))]:
        place = float(symlog(np.array(tick), counted.unit))
        roomy = all(abs(place - other) >= 0.14 * (ends[1] - ends[0]) for other in kept.values())
        if ends[0] <= place <= ends[1] and roomy:
            kept[tick] = place
    return tuple((kept[tick], number(tick)) for tick in sorted(kept))


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
