"""From statistics to the range of a static grid: extremes, percentiles, or the range of least error.

All searches work on the sampled tokens and recorded extremes, so no model runs.

Least error follows QDrop, as the public port of QVD does: both ends of the range are multiplied by
i / 50, i = 1..50, and the factor of least mean |x' - x|^2.4 is taken. The port searches every calibration
forward by itself and averages the ranges found ("mse_by_step"), which cuts off the steps of widest range: at
8 bits and more that costs more than it gains, and no number of bits makes it exact. Our "mse" searches all
steps together [choice]. In both, the recorded extremes of the channels count as values of their own, since
a sample hardly ever holds them. The port also centres the range of a whole tensor on zero in this search, which
costs SiLU outputs nearly one bit; here both ends keep their proportion, as in its per-frame search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import fake_quantize, make_grid

ERROR_EXPONENT = 2.4
FACTORS = torch.arange(50, 0, -1) / 50  # the widest wins ties
SEARCHED_VALUES = 4096  # sampled ones, at most, of each search
MOST_QUANTILES = 2**24  # torch.quantile takes no more
TAIL = 0.001  # left out at either end by "percentile"


def input_range(
    statistics: Statistics,
    site: str,
    form: ActivationFormat,
    transform: ChannelTransform | None = None,
    channels: slice = slice(None),
    includes_zero: bool = False,
) -> tuple[Tensor, Tensor]:
    """The (low, high) of the grids `form` asks for at `site`.

    Args:
        transform: applied to the input before it is quantized.
        channels: only these, for an input whose parts are quantized apart.
        includes_zero: the input also holds zeros that calibration did not see, such as padding, which
            `transform` may move beyond the range of all it saw.

    Returns:
        Two fp32 tensors: [steps] for "static_per_step"; [frames] for "static_per_frame" where the site
        sees frames and its channels are not transformed (ranges of transformed frames are not
        recorded); else [1].
    """
    low, high = statistics.low[site], statistics.high[site]
    tokens = statistics.tokens[site]
    if includes_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    if transform is not None:
        low, high, tokens = (transform.apply(t) for t in (low, high, tokens))
    ends, tokens = (low[:, channels], high[:, channels]), tokens[..., channels]
    by_step = form.range == "static_per_step"
    rows = statistics.token_row(torch.arange(len(low))) if by_step or form.search == "mse_by_step" else slice(None)
    tokens = tokens[rows]
    if form.range == "static_per_frame" and site in statistics.frame_low and transform is None:
        low, high = ends = statistics.frame_low[site], statistics.frame_high[site]
        group, end_group = statistics.token_frames[site][rows].long(), torch.arange(low.shape[1])
    else:
        low, high = ends[0].amin(1, keepdim=True), ends[1].amax(1, keepdim=True)
        group, end_group = torch.zeros(tokens.shape[:2], dtype=torch.long), torch.zeros(ends[0].shape[1]).long()

    if form.search == "percentile":
        return _percentiles(tokens, group, low, high, by_step)
    if form.search == "min_max":
        return (low.flatten(), high.flatten()) if by_step else (low.amin(0), high.amax(0))
    values, group = tokens.flatten(1), group.repeat_interleave(tokens[0, 0].numel(), 1)
    if form.search == "mse" and not by_step:  # one search for all steps
        low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        ends = ends[0].amin(0, keepdim=True), ends[1].amax(0, keepdim=True)
        values, group = values.reshape(1, -1), group.reshape(1, -1)
    count = statistics.counts.get(site, tokens[..., 0].numel()) * tokens.shape[-1]
    extremes = torch.cat(ends, 1)
    search = _Search(values, group, extremes, end_group.repeat(2).expand_as(extremes))
    factor = search.factor(low, high, count / len(low), form)[:, None]
    low, high = low * factor, high * factor
    return (low.flatten(), high.flatten()) if by_step else (low.mean(0), high.mean(0))


@dataclass(frozen=True)
class _Search:
    """Values of S searches for the factor of least error, each value on the grid of its group.

    Attributes:
        sampled, sampled_group: [S, N].
        extremes, extreme_group: [S, M].
    """

    sampled: Tensor
    sampled_group: Tensor
    extremes: Tensor
    extreme_group: Tensor

    def factor(self, low: Tensor, high: Tensor, count: float, form: ActivationFormat) -> Tensor:
        """The factors [S] for ranges [S, groups]; the samples stand for `count` values, an extreme for itself."""
        number = self.sampled.shape[1]
        keep = torch.linspace(0, number - 1, min(number, SEARCHED_VALUES)).long()
        errors = self._errors(self.sampled[:, keep], self.sampled_group[:, keep], low, high, form).mean(-1)
        errors = errors + self._errors(self.extremes, self.extreme_group, low, high, form).sum(-1) / count
        return FACTORS[errors.argmin(0)]

    def _errors(self, values: Tensor, group: Tensor, low: Tensor, high: Tensor, form: ActivationFormat) -> Tensor:
        """|x' - x|^2.4 of every factor, [factors, S, N]."""
        if low.shape[1] == 1:
            group = group[:, :1]  # one range broadcasts
        factors = FACTORS[:, None, None]
        grid = make_grid(low.gather(1, group) * factors, high.gather(1, group) * factors, form.bits, form.symmetric)
        return (fake_quantize(values, grid) - values).abs().pow(ERROR_EXPONENT)


def _percentiles(tokens: Tensor, group: Tensor, low: Tensor, high: Tensor, by_step: bool) -> tuple[Tensor, Tensor]:
    """Quantiles of the tokens of each group, or step; the extremes if all its samples are zero, or it has none."""
    steps, groups = low.shape
    key = torch.arange(steps)[:, None].expand_as(group) if by_step else group
    lows, highs = (low.flatten(), high.flatten()) if by_step else (low.amin(0), high.amax(0))
    lows, highs = lows.clone(), highs.clone()
    for number in range(steps if by_step else groups):
        values = tokens[key == number].flatten()
        if values.any():  # a few tokens may happen to be all zero where the extremes are not
            lows[number], highs[number] = torch.quantile(
                values[:: 1 + len(values) // MOST_QUANTILES], torch.tensor([TAIL, 1 - TAIL])
            )
    return lows, highs
