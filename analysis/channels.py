"""How much of a layer's quantization grid each input channel uses.

One scale serves a whole tensor, so its grid spans the widest channel, and a channel with a narrow or
off-centre range reaches only few codes of it. This is what motivates SCRI, the channel range
integration of QVD (arXiv 2407.11585).

    coverage_c = (high_c - low_c) / (high - low)

`high` and `low` are the ends of the tensor's range over all channels and steps, widened to include zero
as every grid here is. Everything follows from calibration statistics; nothing runs a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat
from qvd_core.quantizers.uniform import Grid, dequantize, make_grid, quantize

SORTS = ("channel", "range", "centre")
"""By number; by width of the range, narrowest first (hence also by coverage); by middle of the range."""


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """Input channels of one layer; the arrays are columns of one table, [C] each.

    Attributes:
        site: module path of the layer.
        step: 0-based denoising step of the ranges; None for the extremes over all steps.
        form: bits and symmetry of the per-tensor grid.
        grid: that grid, fixed over all steps as a static quantizer has it.
        sort: the order of the rows, one of `SORTS`.
        channel: 0-based number.
        low, high: fp32, extremes of the channel's values.
        coverage: fp32, share of the grid's width, 0 to 1.
        codes: how many codes lie between those of the extremes, both included: at least 1, at most
            2^bits. An upper bound on those really used, since only the extremes are known.
    """

    site: str
    step: int | None
    form: ActivationFormat
    grid: Grid
    sort: str
    channel: np.ndarray
    low: np.ndarray
    high: np.ndarray
    coverage: np.ndarray
    codes: np.ndarray

    @property
    def grid_ends(self) -> tuple[float, float]:
        """The values of the lowest and the highest code."""
        scale, zero_point = float(self.grid.scale), int(self.grid.zero_point)
        return (self.grid.code_min - zero_point) * scale, (self.grid.code_max - zero_point) * scale

    @property
    def available_codes(self) -> int:
        """How many codes the grid has."""
        return self.grid.code_max - self.grid.code_min + 1

    @property
    def median_codes(self) -> int:
        """How many codes the median channel reaches; of two in the middle, the lower."""
        return int(np.quantile(self.codes, 0.5, method="lower"))

    def levels(self) -> np.ndarray:
        """The values of all codes, ascending, fp32 [2^bits] (one fewer on a symmetric grid)."""
        import torch

        codes = torch.arange(self.grid.code_min, self.grid.code_max + 1)
        return dequantize(codes, self.grid).numpy()

    def sorted_by(self, sort: str) -> ChannelTable:
        """The same rows in another order, equals by channel number."""
        keys = {"channel": self.channel, "range": self.high - self.low, "centre": self.high + self.low}
        order = np.lexsort((self.channel, keys[sort]))
        columns: dict[str, Any] = {
            name: getattr(self, name)[order] for name in ("channel", "low", "high", "coverage", "codes")
        }
        return dataclasses.replace(self, sort=sort, **columns)


@dataclass(frozen=True)
class SiteCoverage:
    """One layer in short: mean coverage of its channels, and the narrowest one's."""

    site: str
    channels: int
    mean: float
    least: float


def channel_table(
    statistics: Statistics, site: str, form: ActivationFormat, step: int | None = None, sort: str = "channel"
) -> ChannelTable:
    """The channels of `site` on the static per-tensor grid of `form`.

    Args:
        statistics: ranges of the model.
        site: one of those `statistics` knows.
        form: bits and symmetry; its `range` is not looked at.
        step: 0-based; None for all steps together.
        sort: one of `SORTS`.
    """
    low, high = _ranges(statistics, site, step)
    grid = make_grid(*statistics.tensor_range(site), form.bits, form.symmetric)
    codes = quantize(high, grid).int() - quantize(low, grid).int() + 1
    table = ChannelTable(
        site=site,
        step=step,
        form=form,
        grid=grid,
        sort="channel",
        channel=np.arange(len(low)),
        low=low.numpy(),
        high=high.numpy(),
        coverage=_coverage(statistics, site, step, form.symmetric),
        codes=codes.numpy(),
    )
    return table if sort == "channel" else table.sorted_by(sort)


def site_overview(statistics: Statistics, sites: Sequence[str], step: int | None = None) -> list[SiteCoverage]:
    """Coverage of an affine grid at each of `sites`, in their order."""
    rows = []
    for site in sites:
        shares = _coverage(statistics, site, step, symmetric=False)
        rows.append(SiteCoverage(site, len(shares), float(shares.mean()), float(shares.min())))
    return rows


def in_words(table: ChannelTable) -> str:
    """What the table shows, for people."""
    when = "Over all steps" if table.step is None else f"At step {table.step + 1}"
    count = len(table.channel)
    sentence = (
        f"{when}, the median of this input's {count} channels spans {np.median(table.coverage):.0%} of the grid"
        f" that all of them share: at {table.form.bits} bits, {table.median_codes:,} of its"
        f" {table.available_codes:,} codes."
    )
    alone = int(((table.low >= 0) | (table.high <= 0)).sum())
    if alone:
        return f"{sentence} {alone} of {count} never change sign, so one side of zero is lost on them."
    return f"{sentence} Every channel takes values on both sides of zero."


def _ranges(statistics: Statistics, site: str, step: int | None) -> tuple[Any, Any]:
    low, high = statistics.low[site], statistics.high[site]
    return (low.amin(0), high.amax(0)) if step is None else (low[step], high[step])


def _coverage(statistics: Statistics, site: str, step: int | None, symmetric: bool) -> np.ndarray:
    """Each channel's range over that of the whole grid, fp32 [C]; zero for a tensor that is always zero."""
    low, high = _ranges(statistics, site, step)
    bottom, top = (float(end) for end in statistics.tensor_range(site))
    span = 2 * max(abs(bottom), abs(top)) if symmetric else max(top, 0.0) - min(bottom, 0.0)
    return ((high - low) / (span or 1.0)).numpy()
