"""Distances between two sets of clips, from the features of a network: what FVD, KVD and FID are made of.

The Frechet distance (Heusel et al. 2017; Unterthiner et al. 2018 for video) compares means and covariances. It is
biased upwards, the more so the fewer clips there are: below as many as there are features (400 for I3D) the
covariances are rank-deficient and most of the number is that bias. So it compares only with distances from equally
many clips, and never with a published FVD. The kernel distance (Binkowski et al. 2018) has no such bias.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qvd_core.metrics.networks import MetricUnavailable


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b|^2 + tr(cov a) + tr(cov b) - 2 tr((cov a cov b)^(1/2)); 0 for equal sets.

    Args:
        a: [N, D], one row per clip (or frame).
        b: [M, D].

    Raises:
        MetricUnavailable: fewer than two rows in a set.
    """
    a, b = _checked(a), _checked(b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # With cov = R^T R, the trace term is the sum of the singular values of R_a R_b^T. No root of a product of
    # covariances is taken, which would be singular and inexact when there are fewer clips than features.
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = shift @ shift + np.square(root_a).sum() + np.square(root_b).sum() - 2 * overlap
    return max(float(distance), 0.0)  # rounding may take equal sets just below


def kernel_distance(a: np.ndarray, b: np.ndarray, *, paired: bool = False) -> float:
    """Squared maximum mean discrepancy under (x.y / D + 1)^3, estimated without bias.

    Args:
        a: [N, D], one row per clip (or frame).
        b: [M, D].
        paired: whether row i of both sets comes from the same prompt and seed. Such rows resemble each other more
            than two of one set do, which would pull the estimate far below zero; they are then left out of the
            cross term, and equal sets give exactly 0 (Gretton et al. 2012, equation 4).

    Returns:
        About 0 for sets from the same distribution, and as often just below as above.

    Raises:
        MetricUnavailable: fewer than two rows in a set.
    """
    a, b = _checked(a), _checked(b)
    if paired and len(a) != len(b):
        raise ValueError(f"sets of {len(a)} and {len(b)} rows are not paired")
    across = _kernel(a, b)
    cross = _mean_off_diagonal(across) if paired else float(across.mean())
    return _mean_off_diagonal(_kernel(a, a)) + _mean_off_diagonal(_kernel(b, b)) - 2 * cross


def bootstrap_interval(
    statistic: Callable[..., float],
    *sets: np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Where `statistic` would lie, in `level` of the cases, had other clips been drawn: a bootstrap interval.

    Every resample draws clips with replacement, the same ones in each set, so pairs stay together. A resample
    repeats clips, which moves both distances above by more than they scatter; so the percentiles are
    shifted by as much as the mean of the resamples differs from the statistic itself. It is an interval for the
    statistic at this number of clips: the Frechet distance's own bias is in it. For the kernel distance it is wider
    than it need be.

    Args:
        statistic: takes the resampled `sets` and returns a number.
        sets: arrays [N, ...] of equal N, whose first axis is clips. Frames of one clip are not independent, so
            for a statistic over frames pass [N, F, D] and flatten inside `statistic`.
        resamples: how many; 1000 of two sets of 64 clips take about a second with I3D features.
        level: between 0 and 1.
        seed: of the resampling.

    Returns:
        low, high.
    """
    count = len(sets[0])
    if any(len(one) != count for one in sets):
        raise ValueError(f"sets of {', '.join(str(len(one)) for one in sets)} clips are not paired")
    drawn = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    values = np.array([statistic(*(one[rows] for one in sets)) for rows in drawn])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - values.mean() + statistic(*sets)
    return float(low), float(high)


def _checked(features: np.ndarray) -> np.ndarray:
    if len(features) < 2:
        raise MetricUnavailable(f"A distance between sets needs at least two clips in each; one has {len(features)}.")
    return features.astype(np.float64)


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with R^T R the sample covariance (ddof 1)."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(square: np.ndarray) -> float:
    count = len(square)
    return float((square.sum() - np.trace(square)) / (count * (count - 1)))
