"""Distances between sets of features, against matrix roots, double loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from qvd_core.metrics.frechet import bootstrap_interval, frechet_distance, kernel_distance
from qvd_core.metrics.networks import MetricUnavailable
from tests.closeness import assert_close


def features(count: int, width: int, seed: int) -> np.ndarray:
    """Correlated normal features, neither centred nor of one scale."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + random.normal(size=width)


def frechet_by_matrix_root(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root))


def whitened(count: int, width: int, seed: int) -> np.ndarray:
    """A set whose mean is 0 and whose covariance is the identity, to rounding."""
    centred = features(count, width, seed)
    centred -= centred.mean(axis=0)
    return centred @ np.linalg.inv(scipy.linalg.sqrtm(np.cov(centred.T)).real)


def test_frechet_agrees_with_the_matrix_root():
    a, b = features(60, 7, seed=0), features(45, 7, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_matrix_root(a, b), rel=1e-9)


def test_frechet_of_gaussians_in_closed_form():
    """Commuting covariances: |difference of means|^2 + sum (s - t)^2 of standard deviations s and t."""
    s, t, shift = np.array([1.0, 2.0, 0.5]), np.array([1.5, 0.2, 0.5]), np.array([0.0, 3.0, -1.0])
    a, b = whitened(40, 3, seed=0) * s, whitened(30, 3, seed=1) * t + shift
    assert frechet_distance(a, b) == pytest.approx(np.square(s - t).sum() + np.square(shift).sum(), rel=1e-9)


def test_frechet_with_fewer_clips_than_features():
    """Turned into 50 dimensions, sets of 12 and 9 clips keep the distance they had in 4."""
    a, b = features(12, 4, seed=0), features(9, 4, seed=1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(50, 4)))[0].T
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_by_matrix_root(a, b), rel=1e-9)


@pytest.mark.parametrize(("count", "width"), [(30, 5), (8, 40)])
def test_frechet_of_equal_sets_is_zero(count, width):
    a = features(count, width, seed=0)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-10 * np.square(a).sum())
    assert frechet_distance(a, a) >= 0


def test_frechet_is_symmetric():
    a, b = features(10, 20, seed=0), features(15, 20, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_frechet_is_computed_in_doubles():
    a = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) + np.float32(1000)
    b = a + np.float32(0.125)
    assert frechet_distance(a, b) == pytest.approx(4 * 0.125**2, rel=1e-2)


def test_frechet_overstates_small_sets():
    """Why the number of clips belongs beside every Frechet distance: these sets have one distribution."""
    random = np.random.default_rng(0)
    few, many = (random.normal(size=(2, count, 20)) for count in (12, 1200))
    assert frechet_distance(*few) > 10 * frechet_distance(*many) > 0


def kernel_by_double_loop(a: np.ndarray, b: np.ndarray, paired: bool) -> float:
    def mean(xs: np.ndarray, ys: np.ndarray, skip_equal: bool) -> float:
        values = [
            (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3
            for i, x in enumerate(xs)
            for j, y in enumerate(ys)
            if not (skip_equal and i == j)
        ]
        return math.fsum(values) / len(values)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, paired)


@pytest.mark.parametrize(("counts", "paired"), [((6, 9), False), ((7, 7), False), ((7, 7), True)])
def test_kernel_distance_agrees_with_the_double_loop(counts, paired):
    a, b = features(counts[0], 5, seed=0), features(counts[1], 5, seed=1)
    expected = kernel_by_double_loop(a.tolist(), b.tolist(), paired)
    assert kernel_distance(a, b, paired=paired) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_equal_pairs_is_zero():
    a = features(20, 30, seed=0)
    # Sums of numbers up to 1e5 in fp64, whose order differs from processor to processor.
    assert kernel_distance(a, a, paired=True) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_has_no_bias():
    """Sets from one distribution average to zero, within three standard errors, however few clips they have."""
    random = np.random.default_rng(0)
    values = [kernel_distance(*random.normal(size=(2, 6, 10))) for _ in range(2000)]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_kernel_distance_of_pairs_has_no_bias_only_if_it_knows_of_them():
    random = np.random.default_rng(0)
    shared = random.normal(size=(500, 8, 20))
    a, b = shared + 0.3 * random.normal(size=shared.shape), shared + 0.3 * random.normal(size=shared.shape)
    paired = [kernel_distance(x, y, paired=True) for x, y in zip(a, b, strict=True)]
    assert abs(np.mean(paired)) < 3 * np.std(paired) / len(paired) ** 0.5
    unaware = [kernel_distance(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean(unaware) < -10 * np.std(unaware) / len(unaware) ** 0.5


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_a_single_clip_is_no_set(distance):
    with pytest.raises(MetricUnavailable, match="at least two clips in each; one has 1"):
        distance(features(5, 3, seed=0), features(1, 3, seed=1))


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="6 and 7"):
        kernel_distance(features(6, 3, seed=0), features(7, 3, seed=0), paired=True)
    with pytest.raises(ValueError, match="6, 7"):
        bootstrap_interval(frechet_distance, features(6, 3, seed=0), features(7, 3, seed=0))


def test_the_interval_of_a_mean_is_the_one_of_the_textbook():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=400)
    low, high = bootstrap_interval(lambda v: float(v.mean()), values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert_close([low, high], [values.mean() - half, values.mean() + half], 0.02)
    narrow = bootstrap_interval(lambda v: float(v.mean()), values, resamples=4000, level=0.5)
    assert_close(narrow, [values.mean() - half * 0.6745 / 1.96, values.mean() + half * 0.6745 / 1.96], 0.02)


def test_pairs_stay_together_and_the_seed_decides():
    a = features(12, 3, seed=0)
    assert bootstrap_interval(lambda x, y: float(np.abs(x - y).sum()), a, a.copy(), resamples=50) == (0, 0)
    intervals = [bootstrap_interval(lambda x: float(x.mean()), a, resamples=50, seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_resampling_is_by_clip_when_clips_have_many_frames():
    """Frames of a clip are alike here, so drawing single frames would give a quarter of the width."""
    clips = np.repeat(np.random.default_rng(0).normal(size=(100, 1)), 16, axis=1)
    low, high = bootstrap_interval(lambda x: float(x.ravel().mean()), clips)
    assert high - low == pytest.approx(2 * 1.96 * clips.std() / 10, rel=0.1)


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_the_interval_covers_what_other_clips_would_give(kind):
    """In 19 of 20 draws, or so: checked against the mean of the statistic over many draws of as many clips.

    Plain percentiles would never cover it here, since every resample has fewer distinct clips.
    """
    random = np.random.default_rng(0)

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a, b) if kind == "frechet" else kernel_distance(a, b, paired=True)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        a = random.normal(size=(24, 40))
        return a, a + 0.4 * random.normal(size=a.shape) + 0.1

    truth = np.mean([statistic(*draw()) for _ in range(200)])
    intervals = [bootstrap_interval(statistic, *draw(), resamples=80) for _ in range(40)]
    assert sum(low <= truth <= high for low, high in intervals) >= 34
