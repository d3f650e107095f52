"""Numbers on temporal features against scipy and against one value at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from analysis.temporal import (
    cosine_similarity,
    histogram,
    in_words,
    moments,
    neighbour_similarity,
    symlog,
    temporal_table,
)
from qvd_core.calibration.temporal_features import TemporalFeatures


def features_of(values: np.ndarray) -> TemporalFeatures:
    values = np.asarray(values, dtype=np.float32)
    return TemporalFeatures(torch.linspace(999, 0, len(values)), torch.from_numpy(values))


def heavy_tailed(steps: int = 6, channels: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(2, size=(steps, channels)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_moments_are_those_of_scipy(seed: int) -> None:
    values = heavy_tailed(seed=seed)
    found = moments(values)
    exact = values.astype(np.float64)
    assert found.skewness == pytest.approx(stats.skew(exact, axis=None))
    assert found.excess_kurtosis == pytest.approx(stats.kurtosis(exact, axis=None))
    assert found.largest_over_median == pytest.approx(np.abs(exact).max() / np.median(np.abs(exact)))


def test_moments_by_hand() -> None:
    found = moments(np.array([0.0, 0.0, 0.0, 4.0]))  # mean 1, variance 3, third moment 6, fourth 21
    assert found.skewness == pytest.approx(6 / 3**1.5)
    assert found.excess_kurtosis == pytest.approx(21 / 9 - 3)
    assert found.largest_over_median == math.inf


def test_moments_of_constant_values_are_undefined() -> None:
    found = moments(np.full((2, 3), 0.5))
    assert math.isnan(found.skewness)
    assert math.isnan(found.excess_kurtosis)
    assert found.largest_over_median == 1


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_grid_value_by_value(bits: int) -> None:
    values = heavy_tailed()
    table = temporal_table(features_of(values), bits)
    scale = (values.max() - values.min()) / (2**bits - 1)
    assert table.scale == pytest.approx(float(scale), rel=1e-6)
    assert len(table.levels) == 2**bits
    np.testing.assert_allclose(np.diff(table.levels), scale, rtol=1e-4)
    nearest = np.abs(values[..., None] - table.levels).argmin(-1)
    np.testing.assert_allclose(table.rounded, table.levels[nearest], atol=1e-6)
    assert table.zero_share == pytest.approx(np.mean(np.abs(values) < scale / 2))
    np.testing.assert_array_equal(table.similarity, cosine_similarity(values))
    np.testing.assert_array_equal(table.rounded_similarity, cosine_similarity(table.rounded))


def test_cosines_pair_by_pair() -> None:
    values = heavy_tailed()
    matrix = cosine_similarity(values)
    assert matrix.dtype == np.float32
    for i, a in enumerate(values.astype(np.float64)):
        for j, b in enumerate(values.astype(np.float64)):
            assert matrix[i, j] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-6)
    beside = np.mean([matrix[i, i + 1] for i in range(len(matrix) - 1)])
    assert neighbour_similarity(matrix) == pytest.approx(beside)


def test_features_of_zeros_have_no_direction() -> None:
    matrix = cosine_similarity(np.array([[0.0, 0], [0, 0], [1, 0]], dtype=np.float32))
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert math.isnan(neighbour_similarity(np.ones((1, 1))))


def test_neighbours_that_become_equal_are_counted() -> None:
    table = temporal_table(features_of(np.array([[0.0, 1.0], [0.01, 1.0], [0.4, 1.0], [0.41, 0.99]])), 3)
    assert table.merged == 2
    assert "2 of the 3 pairs became identical" in in_words(table)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_every_value_is_in_the_bin_that_counts_it(scale: float) -> None:
    values = scale * heavy_tailed()
    counted = histogram(values)
    assert counted.counts.sum() == values.size
    assert 80 <= len(counted.counts) <= 82
    assert np.abs(counted.edges).min() == 0
    for left, right, count in zip(counted.edges[:-1], counted.edges[1:], counted.counts, strict=True):
        assert count == np.sum((values >= left) & (values < right))
    np.testing.assert_allclose(np.diff(symlog(counted.edges, counted.unit)).std(), 0, atol=1e-9)
    median = np.median(np.abs(values))
    assert median <= counted.unit < 10 * median


def test_constant_values_fill_one_bin() -> None:
    for value in (0.0, 0.5, -0.5):
        counted = histogram(np.full(5, value))
        assert counted.counts.sum() == counted.counts.max() == 5


def test_the_words_follow_the_numbers() -> None:
    values = heavy_tailed()
    coarse, fine = temporal_table(features_of(values), 3), temporal_table(features_of(values), 16)
    assert f"{coarse.zero_share:.1%} of all values" in in_words(coarse)
    assert "stays at" in in_words(fine)
    before, after = neighbour_similarity(coarse.similarity), neighbour_similarity(coarse.rounded_similarity)
    word = "rises" if after > before else "falls"
    assert f"{word} from {before:.3f} to {after:.3f}" in in_words(coarse)
    assert "neighbouring" not in in_words(temporal_table(features_of(values[:1]), 8))
