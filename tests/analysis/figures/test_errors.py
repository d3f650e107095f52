"""The figure of growing errors against its table."""

from __future__ import annotations

import numpy as np

from analysis.drawing import Line
from analysis.figures.errors import error_growth
from tests.analysis import tables


def test_a_line_per_part_is_drawn_as_measured() -> None:
    table = tables.growth()
    drawing = error_growth(table)
    assert len(drawing.marks) == 4
    for line, part, errors in zip(drawing.marks, table.parts, table.errors, strict=True):
        assert isinstance(line, Line)
        assert line.label.startswith(part)
        np.testing.assert_array_equal(line.x, [1, 2, 3])
        shown = np.isfinite(line.y)
        np.testing.assert_array_equal(line.y[shown], errors[shown])
        np.testing.assert_array_equal(shown, errors > 0)
        assert line.hover == tuple(f"{part}<br>step {i + 1}: {error:.2%}" for i, error in enumerate(errors))
    whole = drawing.marks[-1]
    assert whole.label == "all of it (some-recipe)"
    assert [line.dash for line in drawing.marks] == ["dash", "dash", "dash", "solid"]
    assert len({line.color for line in drawing.marks}) == 4


def test_the_alternative_text_is_the_finding() -> None:
    table = tables.growth()
    assert error_growth(table).alt_text == table.in_words()
    assert "off by 8.0%" in table.in_words()
