"""Figures of sensitivity: one layer at a time, and what a budget buys."""

from __future__ import annotations

import numpy as np

from analysis.drawing import DATA, FOURTH, OTHER, QUANTIZED, Axis, Drawing, Line, Points, number
from analysis.sensitivity import FrontTable, SensitivityTable, bits_in_words

COLORS = {"time": FOURTH, "temporal": QUANTIZED, "spatial": DATA, "text": OTHER}
REST = "#888888"


def layers(table: SensitivityTable) -> Drawing:
    """Every layer's own error, and below or beside it what the network was measured to make of it."""
    known = np.isfinite(table.measured) & (table.measured > 0) & (table.estimated > 0)
    bits = bits_in_words(table.bits)
    if known.any():
        x, y = table.estimated, table.measured
        x_title = f"estimated error of its output at {bits} (log axis)"
        y_title = "measured error of the prediction (log axis)"
    else:
        known = table.estimated > 0
        x, y = np.arange(len(table.sites)), table.estimated
        x_title, y_title = "layer, in the model's order", f"estimated error at {bits} (log axis)"
    marks = []
    for kind, color in [*COLORS.items(), ("others", REST)]:
        own = known & np.array([_kind(role) == kind for role in table.roles])
        if not own.any():
            continue
        names = tuple(site for site, shown in zip(table.sites, own, strict=True) if shown)
        hover = tuple(
            f"{site}<br>estimated {number(table.estimated[i])}"
            + (f"<br>measured {number(table.measured[i])}" if np.isfinite(table.measured[i]) else "")
            for i, site in enumerate(table.sites)
            if own[i]
        )
        marks.append(Points(x[own], y[own], color, label=kind, hover=hover, names=names))
    return Drawing(
        Axis(x_title, log=x is table.estimated),
        Axis(y_title, log=True),
        tuple(marks),
        alt_text=_layers_alt(table, y, known),
        keep_zoom=f"layers {x_title}",
    )


def front(table: FrontTable) -> Drawing:
    """Least summed error by cost; the closer to the lower left, the better."""
    unit, scale = ("weights, MB", 1e6) if table.cost == "bytes" else ("bit operations per call, G", 1e9)
    positive = table.errors > 0
    marks: list[Line | Points] = [
        Line(table.costs[positive] / scale, table.errors[positive], DATA, label="best for each budget")
    ]
    if table.uniform:
        costs, errors = (np.array(column) for column in zip(*table.uniform.values(), strict=True))
        hover = tuple(f"{name}<br>{cost / scale:.2f}" for name, cost in zip(table.uniform, costs, strict=True))
        marks.append(Points(costs / scale, errors, REST, "same bits everywhere", "cross", 9, hover))
    here = np.array([table.chosen_cost / scale])
    if table.chosen.error > 0:
        marks.append(Points(here, np.array([table.chosen.error]), QUANTIZED, "chosen", "diamond", 12))
    return Drawing(
        Axis(f"{unit} (computed)"),
        Axis("summed error (log axis)", log=True),
        tuple(marks),
        alt_text=(
            f"Summed error of the best recipe for each budget, from {table.costs[0] / scale:.3g} to"
            f" {table.costs[-1] / scale:.3g} ({unit}). Chosen: {here[0]:.3g}, error {table.chosen.error:.3g}."
        ),
        keep_zoom=f"front {table.cost}",
    )


def _kind(role: str) -> str:
    return next((kind for kind in COLORS if role.startswith(kind) and role != "temporal_features"), _other(role))


def _other(role: str) -> str:
    return "time" if role == "temporal_features" else "others"


def _layers_alt(table: SensitivityTable, shown: np.ndarray, known: np.ndarray) -> str:
    if not known.any():
        return "No layer makes an error at these bits."
    worst = int(np.argmax(np.where(known, shown, -np.inf)))
    return (
        f"Error of each of {int(known.sum())} layers quantized alone to {bits_in_words(table.bits)}. Largest:"
        f" {table.sites[worst]}, {shown[worst]:.3g}; median {np.median(shown[known]):.3g}."
    )
