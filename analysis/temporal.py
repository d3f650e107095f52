"""Temporal features in numbers: how they are distributed, and what a uniform grid leaves of them.

QVD (arXiv 2407.11585), section 4.1, asks two things of them: are a few values far larger than the rest,
so that a uniform grid rounds most of the others to zero; and do the features of neighbouring steps stay
distinct once quantized. The grid here is the one a static quantizer would use: affine, per tensor, its
ends the extremes over all steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qvd_core.calibration.temporal_features import TemporalFeatures
from qvd_core.quantizers.uniform import affine_grid, fake_quantize

BINS = 80


@dataclass(frozen=True)
class Moments:
    """The shape of a distribution.

    Attributes:
        skewness: third standardized moment; 0 if symmetric, positive if the long tail is on the right.
        excess_kurtosis: fourth standardized moment minus 3; 0 for a normal distribution.
        largest_over_median: largest over median magnitude.
    """

    skewness: float
    excess_kurtosis: float
    largest_over_median: float


@dataclass(frozen=True, eq=False)
class TemporalTable:
    """Temporal features of T steps and C channels, before and after a uniform affine grid.

    Attributes:
        timesteps: fp32 [T], in sampling order.
        values, rounded: fp32 [T, C], in full precision and on the grid.
        bits: of the grid; scale: its step, in the unit of the values.
        levels: fp32 [2^bits], the grid's values, ascending.
        zero_share: share of the values that the grid rounds to zero, 0 to 1.
        similarity, rounded_similarity: fp32 [T, T], cosines between steps, -1 to 1.
        merged: how many of the T - 1 pairs of neighbouring steps have become exactly equal.
    """

    timesteps: np.ndarray
    values: np.ndarray
    rounded: np.ndarray
    bits: int
    scale: float
    levels: np.ndarray
    zero_share: float
    similarity: np.ndarray
    rounded_similarity: np.ndarray
    merged: int

    def columns(self) -> dict[str, np.ndarray]:
        """One line per step and channel; steps count from 1."""
        step, channel = (index.ravel() for index in np.indices(self.values.shape))
        return {
            "step": step + 1,
            "timestep": self.timesteps[step],
            "channel": channel,
            "value": self.values.ravel(),
            "rounded": self.rounded.ravel(),
        }


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts over bins that are equally wide on a symmetric logarithmic axis.

    Attributes:
        unit: where the axis turns from linear (around zero) to logarithmic.
        edges: fp64 [B + 1], in the unit of the values; zero is one of them or lies outside.
        counts: int [B].
    """

    unit: float
    edges: np.ndarray
    counts: np.ndarray


def moments(values: np.ndarray) -> Moments:
    """The moments of all `values` together, by the population formulas (no correction for sample size).

    Skewness and kurtosis of constant values are NaN; with a median of zero the ratio is infinite.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    centred = x - x.mean()
    magnitudes = np.abs(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        standard = centred / np.sqrt(np.mean(centred**2))
        square = standard * standard  # numpy's powers above 2 take fifty times as long
        ratio = np.float64(magnitudes.max()) / np.median(magnitudes)
    return Moments(float(np.mean(square * standard)), float(np.mean(square * square) - 3), float(ratio))


def temporal_table(features: TemporalFeatures, bits: int) -> TemporalTable:
    """What the affine per-tensor grid of `bits` bits, 2 to 16, makes of `features`."""
    import torch

    grid = affine_grid(features.values.amin(), features.values.amax(), bits)
    rounded = fake_quantize(features.values, grid)
    codes = torch.arange(grid.code_min, grid.code_max + 1)
    values = features.values.numpy()
    return TemporalTable(
        timesteps=features.timesteps.numpy(),
        values=values,
        rounded=rounded.numpy(),
        bits=bits,
        scale=float(grid.scale),
        levels=((codes - grid.zero_point) * grid.scale).numpy(),
        zero_share=float((rounded == 0).double().mean()),
        similarity=cosine_similarity(values),
        rounded_similarity=cosine_similarity(rounded.numpy()),
        merged=int((rounded[1:] == rounded[:-1]).all(dim=1).sum()),
    )


def cosine_similarity(values: np.ndarray) -> np.ndarray:
    """Cosines between the rows of `values` [T, C], fp32 [T, T].

    A row of zeros has no direction; two of them count as equal (1), one and any other as unrelated (0).
    """
    x = values.astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    empty = norms == 0
    unit = x / np.where(empty, 1, norms)[:, None]
    cosines = unit @ unit.T
    cosines[np.ix_(empty, empty)] = 1
    return cosines.clip(-1, 1).astype(np.float32)


def neighbour_similarity(similarity: np.ndarray) -> float:
    """The mean of a matrix [T, T] over pairs of neighbouring steps; NaN for a single step."""
    beside = np.diagonal(similarity, offset=1)
    return float(beside.mean()) if len(beside) else float("nan")


def symlog(values: np.ndarray, unit: float) -> np.ndarray:
    """Position on a symmetric logarithmic axis: sign(x) log10(1 + |x| / unit)."""
    return np.sign(values) * np.log10(1 + np.abs(values) / unit)


def histogram(values: np.ndarray, bins: int = BINS) -> Histogram:
    """How often which value occurs, in about `bins` bins.

    The axis turns from linear to logarithmic at the power of ten above the median magnitude: the bulk
    keeps its shape, and outliers a thousand times larger still fit.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    median = float(np.median(np.abs(x)))
    unit = 10.0 ** np.ceil(np.log10(median)) if median > 0 else 1e-3
    positions = symlog(x, unit)
    width = (positions.max() - positions.min()) / bins or 1.0
    # Multiples of one width, so that zero is an edge and no bin mixes the signs.
    first, last = np.floor(positions.min() / width), np.floor(positions.max() / width) + 1
    marks = np.arange(first, last + 1) * width
    counts, _ = np.histogram(positions, marks)
    return Histogram(float(unit), np.sign(marks) * unit * (10 ** np.abs(marks) - 1), counts)


def in_words(table: TemporalTable) -> str:
    """What the table shows, for people."""
    steps, channels = table.values.shape
    text = (
        f"The {steps} temporal features of {channels} values each lie between {table.values.min():.3g} and"
        f" {table.values.max():.3g}. At {table.bits} bits, a uniform grid over that range has steps of"
        f" {table.scale:.2g}: whatever is closer to zero than {table.scale / 2:.2g} becomes zero,"
        f" {table.zero_share:.1%} of all values."
    )
    if steps == 1:
        return text
    before, after = (neighbour_similarity(m) for m in (table.similarity, table.rounded_similarity))
    change = "stays" if round(before, 3) == round(after, 3) else "rises" if after > before else "falls"
    moved = f"at {before:.3f}" if change == "stays" else f"from {before:.3f} to {after:.3f}"
    merged = f"{table.merged} of the {steps - 1} pairs" if table.merged else "none of the pairs"
    return f"{text} The mean cosine similarity of neighbouring steps {change} {moved}; {merged} became identical."
