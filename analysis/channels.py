"""How much of a layer's quantization grid each input channel uses, as it is and after its channels are transformed.

One scale serves a whole tensor, so its grid spans the widest channel, and a channel with a narrow or
off-centre range reaches only few codes of it. This is what motivates SCRI, the channel range
integration of QVD (arXiv 2407.11585).

    coverage_c = (high_c - low_c) / (high - low)

`high` and `low` are the ends of the tensor's range over all channels and steps, widened to include zero
as every grid here is. Everything follows from calibration statistics; nothing runs a model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import CalibrationError
from qvd_core.formats import ActivationFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import Grid, dequantize, fake_quantize, make_grid, quantize

if TYPE_CHECKING:
    from torch import Tensor

SORTS = ("channel", "range", "centre", "error")
"""By number; by width of the range, narrowest first (hence also by coverage); by middle of the range; by
rounding error, largest first."""


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """Input channels of one layer; the arrays are columns of one table, [C] each.

    Attributes:
        site: module path of the layer.
        step: 0-based denoising step of the ranges; None for the extremes over all steps.
        frame: 0-based frame of the ranges; None for all frames. Of one step and one frame together only
            what each allows is known, so ranges are then upper bounds.
        form: bits and symmetry of the per-tensor grid.
        grid: that grid, fixed over all steps as a static quantizer has it.
        transformed: whether channels are shifted or scaled; ranges are then those of the transformed input.
        sort: the order of the rows, one of `SORTS`.
        channel: 0-based number.
        low, high: fp32, extremes of the channel's values.
        coverage: fp32, share of the grid's width, 0 to 1.
        codes: how many codes lie between those of the extremes, both included: at least 1, at most
            2^bits. An upper bound on those really used, since only the extremes are known.
        error: fp32, mean squared rounding error of the channel on the sampled tokens, over the mean square of
            the whole input, both before any transformation.
    """

    site: str
    step: int | None
    frame: int | None
    form: ActivationFormat
    grid: Grid
    transformed: bool
    sort: str
    channel: np.ndarray
    low: np.ndarray
    high: np.ndarray
    coverage: np.ndarray
    codes: np.ndarray
    error: np.ndarray

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

    def columns(self) -> dict[str, np.ndarray]:
        """The rows as they are sorted."""
        names = ("channel", "low", "high", "coverage", "codes", "error")
        return {name: getattr(self, name) for name in names}

    def sorted_by(self, sort: str) -> ChannelTable:
        """The same rows in another order, equals by channel number."""
        keys = {
            "channel": self.channel,
            "range": self.high - self.low,
            "centre": self.high + self.low,
            "error": -self.error,
        }
        order = np.lexsort((self.channel, keys[sort]))
        columns: dict[str, Any] = {name: column[order] for name, column in self.columns().items()}
        return dataclasses.replace(self, sort=sort, **columns)


def channel_table(
    statistics: Statistics,
    site: str,
    form: ActivationFormat,
    step: int | None = None,
    sort: str = "channel",
    *,
    frame: int | None = None,
    transform: ChannelTransform | None = None,
) -> ChannelTable:
    """The channels of `site` on the static per-tensor grid of `form`.

    Args:
        statistics: ranges of the model.
        site: one of those `statistics` knows.
        form: bits and symmetry; its `range` is not looked at.
        step, frame: 0-based; None for all of them together.
        sort: one of `SORTS`.
        transform: of the channels, before they meet the grid.

    Raises:
        CalibrationError: the statistics hold no ranges of single frames for this site.
    """
    low, high = channel_ranges(statistics, site, step, frame)
    whole = statistics.low[site].amin(0), statistics.high[site].amax(0)
    if transform is not None:
        low, high = transform.apply(low), transform.apply(high)
        whole = transform.apply(whole[0]), transform.apply(whole[1])
    grid = make_grid(whole[0].min(), whole[1].max(), form.bits, form.symmetric)
    codes = quantize(high, grid).int() - quantize(low, grid).int() + 1
    table = ChannelTable(
        site=site,
        step=step,
        frame=frame,
        form=form,
        grid=grid,
        transformed=transform is not None,
        sort="channel",
        channel=np.arange(len(low)),
        low=low.numpy(),
        high=high.numpy(),
        coverage=_coverage(low, high, *whole, form.symmetric),
        codes=codes.numpy(),
        error=_rounding_error(statistics, site, step, grid, transform),
    )
    return table if sort == "channel" else table.sorted_by(sort)


def channel_ranges(
    statistics: Statistics, site: str, step: int | None = None, frame: int | None = None
) -> tuple[Tensor, Tensor]:
    """(low, high), fp32 [C] each, of one step, one frame or both; of both, the tightest bounds that are known.

    Raises:
        CalibrationError: the statistics hold no ranges of single frames for this site.
    """
    import torch

    low, high = statistics.low[site], statistics.high[site]
    low, high = (low.amin(0), high.amax(0)) if step is None else (low[step], high[step])
    if frame is None:
        return low, high
    if site not in statistics.channel_frame_low:
        raise CalibrationError(f"The statistics hold no ranges of single frames for {site}.")
    by_frame = statistics.channel_frame_low[site][frame], statistics.channel_frame_high[site][frame]
    # Both are rounded outwards, so bounds of a channel that hardly varies may cross by a hair.
    low = torch.maximum(low, by_frame[0])
    return low, torch.maximum(low, torch.minimum(high, by_frame[1]))


def in_words(table: ChannelTable) -> str:
    """What the table shows, for people."""
    when = "Over all steps" if table.step is None else f"At step {table.step + 1}"
    if table.frame is not None:
        when += f" in frame {table.frame + 1}" if table.step is None else f" and in frame {table.frame + 1}, at most"
    count = len(table.channel)
    what = "this input's" if not table.transformed else "this transformed input's"
    sentence = (
        f"{when}, the median of {what} {count} channels spans {np.median(table.coverage):.0%} of the grid"
        f" that all of them share: at {table.form.bits} bits, {table.median_codes:,} of its"
        f" {table.available_codes:,} codes."
    )
    alone = int(((table.low >= 0) | (table.high <= 0)).sum())
    if alone:
        return f"{sentence} {alone} of {count} never change sign, so one side of zero is lost on them."
    return f"{sentence} Every channel takes values on both sides of zero."


def _coverage(low: Tensor, high: Tensor, lowest: Tensor, highest: Tensor, symmetric: bool) -> np.ndarray:
    """Each channel's range over that of the whole grid, fp32 [C]; zero for a tensor that is always zero."""
    bottom, top = float(lowest.min()), float(highest.max())
    span = 2 * max(abs(bottom), abs(top)) if symmetric else max(top, 0.0) - min(bottom, 0.0)
    return ((high - low) / (span or 1.0)).numpy()


def _rounding_error(
    statistics: Statistics, site: str, step: int | None, grid: Grid, transform: ChannelTransform | None
) -> np.ndarray:
    rows = slice(None) if step is None else statistics.token_row(step)
    tokens = statistics.tokens[site][rows].reshape(-1, statistics.tokens[site].shape[-1])
    moved = tokens if transform is None else transform.apply(tokens)
    error = fake_quantize(moved, grid) - moved
    if transform is not None:
        error = error * transform.scale  # as the weights, which undo the transformation, see it
    power = float(tokens.square().mean())
    return (error.square().mean(0) / (power or 1.0)).numpy()
