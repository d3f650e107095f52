"""SCRI on one layer's input: what shift and scale do to its channels, and why a threshold is chosen.

From calibration statistics and the weights that read the input; nothing runs the model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.memory import remembered
from qvd_core.calibration.statistics import Statistics
from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.methods.at_sites import input_extremes, threshold_search
from qvd_core.methods.scri import ThresholdSearch, centre_and_half_width, coverage, transform_at
from qvd_core.models.sites import find_inputs
from qvd_core.quantizers.channel_transform import ChannelTransform

if TYPE_CHECKING:
    from torch import Tensor

    from qvd_core.models.loader import VideoModel

STAGES = ("as it is", "shifted", "shifted and scaled")
"""What can be done to an input's channels, one after the other."""


@dataclass(frozen=True, eq=False)
class ThresholdTable:
    """The search of one input's threshold.

    Attributes:
        site: the first layer that reads the input.
        search: thresholds, descending, and the squared output error at each.
        thresholds, relative_errors, coverage: fp32 [G]: the search's, its errors over that of the largest
            threshold, which scales nothing, and the mean coverage of the channels, 0 to 1.
        chosen: the threshold that is shown.
    """

    site: str
    search: ThresholdSearch
    thresholds: np.ndarray
    relative_errors: np.ndarray
    coverage: np.ndarray
    chosen: float

    def showing(self, threshold: float) -> ThresholdTable:
        """The same search, with another threshold shown."""
        return dataclasses.replace(self, chosen=threshold)

    def columns(self) -> dict[str, np.ndarray]:
        names = ("thresholds", "relative_errors", "coverage")
        return {name.removesuffix("s"): getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class ChannelWidths:
    """Width of each channel at each step, or in each frame, as a share of the static grid's.

    Attributes:
        site: the layer.
        by: "step" or "frame".
        channel: [C], 0-based numbers, the narrowest over everything first.
        shares: fp32 [C, steps or frames], 0 to 1.
    """

    site: str
    by: str
    channel: np.ndarray
    shares: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """One line per cell; steps and frames count from 1."""
        row, column = (index.ravel() for index in np.indices(self.shares.shape))
        return {"channel": self.channel[row], self.by: column + 1, "share": self.shares.ravel()}


def staged_transform(
    model: VideoModel, statistics: Statistics, site: str, stage: str, threshold: float | None = None
) -> ChannelTransform | None:
    """What `stage` of `STAGES` does to the input of `site`; None for nothing.

    Args:
        threshold: in the unit of the shifted input; None for one that scales nothing.
    """
    if stage == STAGES[0]:
        return None
    centre, half_width = _centres(model, statistics, site)
    limit = float("inf") if stage == STAGES[1] or threshold is None else threshold
    return transform_at(centre, half_width, limit)


def threshold_table(
    model: VideoModel,
    statistics: Statistics,
    site: str,
    weights: WeightFormat | None,
    inputs: ActivationFormat,
) -> ThresholdTable:
    """The search of the threshold of the input of `site`, after the shift, for these formats; shown is the best."""
    search, mean_coverage = _searched(statistics, model, site, weights, inputs)
    errors = search.errors.numpy()
    first = errors[0] or 1.0
    return ThresholdTable(
        site,
        search,
        search.thresholds.numpy(),
        errors / first,
        mean_coverage,
        search.threshold,
    )


def channel_widths(
    statistics: Statistics, site: str, by: str, symmetric: bool, transform: ChannelTransform | None = None
) -> ChannelWidths:
    """Widths by "step" or "frame".

    Raises:
        KeyError: ranges by frame of a site that has none, see `Statistics`.
    """
    kinds = {"step": (statistics.low, statistics.high)}
    kinds["frame"] = (statistics.channel_frame_low, statistics.channel_frame_high)
    low, high = (kind[site] for kind in kinds[by])
    bottom, top = statistics.low[site].amin(0), statistics.high[site].amax(0)
    if transform is not None:
        low, high, bottom, top = (transform.apply(t) for t in (low, high, bottom, top))
    span = (
        2 * max(-float(bottom.min()), float(top.max()))
        if symmetric
        else float(top.max().clamp(min=0) - bottom.min().clamp(max=0))
    )
    order = np.argsort((top - bottom).numpy(), kind="stable")
    return ChannelWidths(site, by, order, ((high - low) / (span or 1.0)).T.numpy()[order])


@remembered(256)
def _searched(
    statistics: Statistics, model: VideoModel, site: str, weights: WeightFormat | None, inputs: ActivationFormat
) -> tuple[ThresholdSearch, np.ndarray]:
    import torch

    shared = next(i for i in find_inputs(model.denoiser, model.sites) if site in i.consumers)
    centre, half_width = _centres(model, statistics, site)
    with torch.inference_mode():
        search = threshold_search(model, statistics, shared, centre, half_width, weights, inputs)
        narrowed = half_width.minimum(search.thresholds[:, None])
        return search, torch.stack([coverage(-h, h, symmetric=False).mean() for h in narrowed]).numpy()


def _centres(model: VideoModel, statistics: Statistics, site: str) -> tuple[Tensor, Tensor]:
    low, high = input_extremes(model, statistics, site)
    return centre_and_half_width(low.amin(0), high.amax(0), shift=True)
