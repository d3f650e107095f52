"""All layers by all steps in one picture: where channels are scattered, inputs skewed, rounding expensive.

From calibration statistics alone; nothing runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.memory import remembered
from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat
from qvd_core.quantizers.uniform import fake_quantize, make_grid
from qvd_core.recipe import TIME_PATH

METRICS = ("coverage", "disparity", "skewness", "error")
"""What a map can show of each layer's input at each step.

"coverage": mean share of the static grid's width that channels span, 0 to 1.
"disparity": width of the widest over that of the median channel, 1 or more.
"skewness": third standardized moment of the sampled tokens; 0 if symmetric.
"error": squared rounding error of the sampled tokens over their square, on the min-max grid of the format.
"""


@dataclass(frozen=True, eq=False)
class SiteMap:
    """One number for every layer and step.

    Attributes:
        metric: one of `METRICS`.
        sites: names, in the model's order.
        values: fp32 [sites, steps]; NaN where it is not defined, as of an input that is always zero.
    """

    metric: str
    sites: tuple[str, ...]
    values: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """One line per cell; steps count from 1."""
        site, step = (index.ravel() for index in np.indices(self.values.shape))
        return {"site": np.array(self.sites)[site], "step": step + 1, self.metric: self.values.ravel()}


@dataclass(frozen=True)
class SiteCoverage:
    """One layer in short: mean coverage of its channels, and the narrowest one's."""

    site: str
    channels: int
    mean: float
    least: float


@remembered(32)
def site_map(statistics: Statistics, sites: tuple[str, ...], metric: str, form: ActivationFormat) -> SiteMap:
    """The map of `sites` on the static per-tensor grids of `form`.

    Args:
        sites: those `statistics` knows.
        metric: one of `METRICS`.
        form: bits and symmetry of the grids; only "error" and, for the symmetry, "coverage" look at it.
    """
    measure = {
        "coverage": lambda site: _coverage(statistics, site, form.symmetric).mean(1),
        "disparity": lambda site: _disparity(statistics, site),
        "skewness": lambda site: _skewness(statistics, site),
        "error": lambda site: _error(statistics, site, form),
    }[metric]
    known: dict[int, np.ndarray] = {}  # layers that read one tensor have the same numbers
    rows = []
    for site in sites:
        key = id(statistics.low[site])
        if key not in known:
            known[key] = measure(site).astype(np.float32)
        rows.append(known[key])
    return SiteMap(metric, sites, np.stack(rows))


def site_overview(statistics: Statistics, sites: Sequence[str], step: int | None = None) -> list[SiteCoverage]:
    """Coverage of an affine grid at each of `sites`, in their order."""
    rows = []
    for site in sites:
        low, high = statistics.low[site], statistics.high[site]
        if step is None:
            shares = (high.amax(0) - low.amin(0)).numpy() / _span(statistics, site, symmetric=False)
        else:
            shares = _coverage(statistics, site, symmetric=False)[step]
        rows.append(SiteCoverage(site, len(shares), float(shares.mean()), float(shares.min())))
    return rows


def in_words(table: SiteMap, roles: Mapping[str, str]) -> str:
    """What the map shows, for people: which roles stand out."""
    by_role: dict[str, list[float]] = {}
    for site, values in zip(table.sites, table.values, strict=True):
        if table.metric in ("coverage", "disparity") and roles[site] in TIME_PATH:
            continue  # at a single step each of its channels has a single value, which spans nothing
        if table.metric == "skewness":
            values = np.abs(values)  # lopsided to either side, which must not cancel
        by_role.setdefault(roles[site], []).append(float(np.nanmean(values)) if np.isfinite(values).any() else np.nan)
    means = {role: float(np.nanmean(values)) for role, values in by_role.items() if np.isfinite(values).any()}
    ordered = sorted(means, key=lambda role: means[role])
    text = {
        "coverage": "Channels span least of their grid at",
        "disparity": "The widest channel stands out most at",
        "skewness": "Inputs are most lopsided at",
        "error": "Rounding alone costs most at",
        "output_error": "Layers by themselves err most at",
    }[table.metric]
    worst = ordered[:2] if table.metric == "coverage" else ordered[::-1][:2]
    shown = " and ".join(f"{role.replace('_', ' ')} ({_shown(table.metric, means[role])})" for role in worst)
    return f"{text} {shown}, averaged over layers and steps."


def _shown(metric: str, value: float) -> str:
    return f"{value:.0%}" if metric == "coverage" else f"{value:.3g}"


def _span(statistics: Statistics, site: str, symmetric: bool) -> float:
    bottom, top = (float(end) for end in statistics.tensor_range(site))
    return (2 * max(abs(bottom), abs(top)) if symmetric else max(top, 0.0) - min(bottom, 0.0)) or 1.0


def _coverage(statistics: Statistics, site: str, symmetric: bool) -> np.ndarray:
    """fp32 [steps, C]."""
    widths: np.ndarray = (statistics.high[site] - statistics.low[site]).numpy()
    return widths / _span(statistics, site, symmetric)


def _disparity(statistics: Statistics, site: str) -> np.ndarray:
    widths = (statistics.high[site] - statistics.low[site]).numpy()
    ordered = np.sort(widths, axis=1)  # several times faster than np.median, which selects
    median = (ordered[:, (widths.shape[1] - 1) // 2] + ordered[:, widths.shape[1] // 2]) / 2
    return np.where(median > 0, widths.max(1) / np.where(median > 0, median, 1), np.nan)


def _skewness(statistics: Statistics, site: str) -> np.ndarray:
    x = statistics.tokens[site].double().flatten(1).numpy()
    centred = x - x.mean(1, keepdims=True)
    squares = centred * centred  # products: numpy's powers are many times slower
    deviation = np.sqrt(squares.mean(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        by_row = np.where(deviation > 0, (squares * centred).mean(1) / deviation**3, np.nan)
    return _of_every_step(statistics, site, by_row)


def _error(statistics: Statistics, site: str, form: ActivationFormat) -> np.ndarray:
    tokens = statistics.tokens[site].flatten(1)
    grid = make_grid(*statistics.tensor_range(site), form.bits, form.symmetric)
    error = (fake_quantize(tokens, grid) - tokens).square().sum(1)
    power = tokens.square().sum(1)
    by_row = (error / power).where(power > 0, float("nan")).numpy()
    return _of_every_step(statistics, site, by_row)


def _of_every_step(statistics: Statistics, site: str, by_row: np.ndarray) -> np.ndarray:
    """Of the step itself, or of the last one before it whose tokens were kept."""
    return by_row[[statistics.token_row(step) for step in range(len(statistics.low[site]))]]
