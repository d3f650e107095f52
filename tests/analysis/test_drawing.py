"""What all drawings have in common, whoever shows them."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.drawing import Axis, Band, Bars, Drawing, Heatmap, Line, Points, Rule, number
from tests.analysis.tables import DRAWINGS


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_speaks(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    assert len(drawing.alt_text) > 60
    assert drawing.alt_text.endswith(".")
    assert "nan" not in drawing.alt_text
    assert any(digit in drawing.alt_text for digit in "0123456789")
    for axis in (drawing.x, drawing.y):
        assert axis.title
        assert axis.log == ("(log axis)" in axis.title), "readers are told of logarithmic axes"
    several = [mark for mark in drawing.marks if isinstance(mark, (Bars, Line, Points))]
    assert len(several) <= 1 or all(mark.label for mark in several)


def positions(mark: object, axis: str) -> list[np.ndarray]:
    """Where a mark is along an axis."""
    if isinstance(mark, Rule):
        return [np.array([mark.value])] if mark.axis == axis else []
    if isinstance(mark, Band):
        return [np.array([mark.low, mark.high])] if axis == "x" else []
    if isinstance(mark, Bars):
        return [mark.x] if axis == "x" else [mark.low, mark.high]
    return [getattr(mark, axis)]


@pytest.mark.parametrize("name", DRAWINGS)
def test_logarithmic_axes_have_positive_data(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    for letter in ("x", "y"):
        axis: Axis = getattr(drawing, letter)
        if not axis.log:
            continue
        assert axis.low is None or axis.low > 0
        everything = np.concatenate([values for mark in drawing.marks for values in positions(mark, letter)])
        assert not np.isnan(everything).all()
        assert (everything[~np.isnan(everything)] > 0).all()
    for mark in drawing.marks:
        if isinstance(mark, Heatmap) and mark.log:
            assert mark.low > 0
            assert not (mark.z <= 0).any()


def half_width(mark: object, axis: str) -> float:
    """How far the last bar or row of neighbours may reach beyond the last of them."""
    if isinstance(mark, Heatmap):
        return float(np.diff(getattr(mark, axis)[:2]).sum()) / 2
    return mark.width / 2 if isinstance(mark, Bars) and axis == "x" else 0.0


@pytest.mark.parametrize("name", DRAWINGS)
def test_marks_are_inside_the_frame_and_complete(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    for letter in ("x", "y"):
        axis: Axis = getattr(drawing, letter)
        assert (axis.low is None) == (axis.high is None)
        for mark in drawing.marks:
            if axis.low is None or isinstance(mark, Rule):
                continue  # levels may lie beyond the values
            for values in positions(mark, letter):
                shown = values[~np.isnan(values)]
                slack = 1e-6 * (axis.high - axis.low) + half_width(mark, letter)
                assert (shown >= axis.low - slack).all()
                assert (shown <= axis.high + slack).all()
    for mark in drawing.marks:
        hover, names = getattr(mark, "hover", ()), getattr(mark, "names", ())
        assert len(hover) in (0, len(getattr(mark, "x", ())))
        assert len(names) in (0, len(getattr(mark, "y", ())))


def test_numbers_have_three_digits_and_a_true_minus() -> None:
    assert [number(value) for value in (1.23456, -0.5, 1e-5, 0.0)] == ["1.23", "−0.5", "1e−05", "0"]
