"""Tables of made-up numbers, of any size, and one drawing of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from analysis.channels import ChannelTable, channel_table
from analysis.drawing import Drawing
from analysis.errors import ErrorGrowth
from analysis.figures import channels as channel_figures
from analysis.figures import errors as error_figures
from analysis.figures import site_map as map_figures
from analysis.figures import temporal as temporal_figures
from analysis.htdq import htdq_table
from analysis.scri import ChannelWidths, ThresholdTable, channel_widths
from analysis.site_map import SiteMap
from analysis.temporal import TemporalTable, temporal_table
from qvd_core.calibration.statistics import CalibrationRun, Statistics
from qvd_core.calibration.temporal_features import TemporalFeatures
from qvd_core.formats import HTDQ, ActivationFormat
from qvd_core.methods.scri import ThresholdSearch
from qvd_core.models.loader import VideoModel

STEPS, FRAMES = 4, 3


def statistics_of(channels: int) -> Statistics:
    """Of one site, "layer"."""
    random = np.random.default_rng(channels)
    ends = random.normal(size=(2, STEPS, channels)).astype(np.float32)
    framed = np.stack([ends[:, :FRAMES].min(0), ends[:, :FRAMES].max(0)])
    low, high, frame_low, frame_high = (
        {"layer": torch.from_numpy(side)} for side in (ends.min(0), ends.max(0), framed[0], framed[1])
    )
    tokens = {"layer": torch.from_numpy(random.normal(size=(STEPS, 2, 1, channels)).astype(np.float32))}
    run = CalibrationRun("tiny", "0" * 16, "DDIMScheduler", STEPS, ("a prompt",), 0, FRAMES, 16, 16, 1.0, 2.5)
    return Statistics(
        run, low, high, {}, {}, tokens, {}, {"layer": 1}, channel_frame_low=frame_low, channel_frame_high=frame_high
    )


def channels(count: int = 9, bits: int = 8, symmetric: bool = False, **options: Any) -> ChannelTable:
    return channel_table(statistics_of(count), "layer", ActivationFormat(bits, symmetric=symmetric), **options)


def widths(count: int = 9, by: str = "step") -> ChannelWidths:
    return channel_widths(statistics_of(count), "layer", by, symmetric=False)


def thresholds() -> ThresholdTable:
    tried = torch.linspace(4, 1, 101)
    errors = (tried - 2.5).square() + 0.5
    search = ThresholdSearch(tried, errors, int(errors.argmin()))
    relative = (errors / errors[0]).numpy()
    return ThresholdTable("layer", search, tried.numpy(), relative, (1 / tried).numpy(), search.threshold)


def temporal(bits: int = 8) -> TemporalTable:
    values = np.random.default_rng(0).standard_t(2, size=(6, 40)).astype(np.float32)
    return temporal_table(TemporalFeatures(torch.linspace(999, 0, 6), torch.from_numpy(values)), bits)


def mapped(metric: str = "coverage", sites: int = 12, steps: int = STEPS) -> SiteMap:
    values = np.random.default_rng(sites).random((sites, steps)).astype(np.float32)
    if metric == "skewness":
        values = 6 * values - 3
    elif metric == "disparity":
        values = 1 + 100 * values**4
    elif metric != "coverage":
        values = values**12
    return SiteMap(metric, tuple(f"down_blocks.{row // 4}.layers.{row}" for row in range(sites)), values)


def growth() -> ErrorGrowth:
    errors = np.array([[0.01, 0.02, 0.05], [0.02, 0.03, 0.02], [0.0, 0.001, 0.002], [0.03, 0.05, 0.08]], np.float32)
    return ErrorGrowth("some-recipe", ("weights", "layer inputs", "time path", "all of it"), errors)


DRAWINGS: dict[str, Callable[[VideoModel], Drawing]] = {
    "ranges": lambda model: channel_figures.ranges(channels()),
    "ranges-with-levels": lambda model: channel_figures.ranges(channels(bits=4, step=1, frame=2, sort="range")),
    "ranges-of-many": lambda model: channel_figures.ranges(channels(1300, bits=16)),
    "widths": lambda model: channel_figures.widths(widths()),
    "widths-of-many": lambda model: channel_figures.widths(widths(1300, "frame")),
    "thresholds": lambda model: channel_figures.thresholds(thresholds()),
    "map-coverage": lambda model: map_figures.site_map(mapped()),
    "map-disparity": lambda model: map_figures.site_map(mapped("disparity")),
    "map-skewness": lambda model: map_figures.site_map(mapped("skewness")),
    "map-error": lambda model: map_figures.site_map(mapped("error")),
    "map-output-error": lambda model: map_figures.site_map(mapped("output_error", steps=1)),
    "growth": lambda model: error_figures.error_growth(growth()),
    "distribution": lambda model: temporal_figures.distribution(temporal()),
    "distribution-with-levels": lambda model: temporal_figures.distribution(temporal(4)),
    "staircases": lambda model: temporal_figures.staircases(htdq_table(model, 5, 4, HTDQ())),
    "code-use": lambda model: temporal_figures.code_use(htdq_table(model, 5, 16, HTDQ())),
    "search": lambda model: temporal_figures.search(htdq_table(model, 5, 8, HTDQ())),
    "search-of-the-port": lambda model: temporal_figures.search(htdq_table(model, 5, 8, HTDQ(port=True))),
    "similarity": lambda model: temporal_figures.similarity(temporal().similarity, "Full precision", 0.0),
}
"""One drawing of every kind, by name."""
