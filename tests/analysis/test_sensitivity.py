"""What the estimate is worth, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.sensitivity import SensitivityTable


def table(estimated: list[float], measured: list[float]) -> SensitivityTable:
    names = tuple(f"layer.{i}" for i in range(len(estimated)))
    return SensitivityTable((4, 8), names, names, np.array(estimated), np.array(measured))


def test_agreement_is_the_correlation_of_the_logarithms() -> None:
    generator = np.random.default_rng(0)
    estimated = generator.lognormal(size=40)
    measured = 1e-4 * estimated * generator.lognormal(size=40)
    expected = stats.pearsonr(np.log(estimated), np.log(measured)).statistic
    assert table(list(estimated), list(measured)).agreement == pytest.approx(expected)


def test_a_power_law_agrees_fully_and_its_inverse_fully_disagrees() -> None:
    assert table([1, 10, 100], [2, 2e2, 2e4]).agreement == pytest.approx(1)
    assert table([1, 10, 100], [2e4, 2e2, 2]).agreement == pytest.approx(-1)


@pytest.mark.parametrize(
    ("estimated", "measured"),
    [([1, 2, 3], [np.nan] * 3), ([1, 2, 3], [1, 2, np.nan]), ([1, 2, 0], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([], [])],
    ids=["nothing-measured", "two-measured", "an-estimate-of-zero", "no-difference", "no-layers"],
)
def test_too_little_to_tell(estimated: list[float], measured: list[float]) -> None:
    assert table(estimated, measured).agreement is None
