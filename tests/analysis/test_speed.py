"""The table of measured speed, from a result as the inference benchmark gives it."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import paper, screen
from analysis.figures.speed import step_times
from analysis.speed import as_markdown, speed_table

RESULT = {
    "sides": {
        "fp32": {"kind": "fp32", "seconds": 0.4, "weight_bytes": 40_000_000, "step_bytes": 8_000_000},
        "int8, minmax-w8a8": {"kind": "int8", "seconds": 0.1, "weight_bytes": 10_000_000, "step_bytes": 4_000_000},
        "bf16": {"kind": "bf16", "seconds": 0.25, "weight_bytes": 20_000_000, "step_bytes": None},
        "torchao int8 dynamic": {"kind": "torchao", "seconds": 0.05, "weight_bytes": 11_000_000, "step_bytes": 0},
    },
    "placements": "int8: 3 layers in integers",
    "device": "a machine",
}


def test_the_quickest_comes_first_and_int8_is_compared_with_the_best_floating_point():
    table = speed_table(RESULT)
    assert table.sides == ("torchao int8 dynamic", "int8, minmax-w8a8", "bf16", "fp32")
    assert table.columns()["weights_mb"].tolist() == [11, 10, 20, 40]
    np.testing.assert_equal(table.columns()["step_mb"], [0, 4, np.nan, 8])
    words = table.in_words()
    assert "a machine" in words
    assert "100 ms" in words
    assert "(bf16) 250 ms: int8 is 2.50 times faster" in words
    assert "10.0 MB instead of 20.0 MB" in words
    assert words.endswith("Int8: 3 layers in integers.")


def test_a_slower_int8_is_called_slower():
    slow = {**RESULT["sides"]["int8, minmax-w8a8"], "seconds": 1.0}
    sides = {**RESULT["sides"], "int8, minmax-w8a8": slow}
    assert "int8 is 4.00 times slower" in speed_table({**RESULT, "sides": sides}).in_words()


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_one_kind_alone_is_compared_with_nothing(kind):
    sides = {name: side for name, side in RESULT["sides"].items() if side["kind"] == kind}
    assert speed_table({**RESULT, "sides": sides}).in_words() == "There is nothing to compare."


def test_the_figure_has_a_point_for_every_side():
    table = speed_table(RESULT)
    drawing = step_times(table)
    drawn = {(float(x), text) for mark in drawing.marks for x, text in zip(mark.x, mark.hover, strict=True)}
    expected = {(1e3 * float(s), n) for s, n in zip(table.seconds, table.sides, strict=True)}
    assert {(x, text.partition("<br>")[0]) for x, text in drawn} == expected
    assert [text for _, text in drawing.y.ticks] == list(table.sides)
    assert drawing.alt_text == table.in_words()
    screen.figure(drawing)
    assert paper.as_file(drawing, "pdf").startswith(b"%PDF")


def test_markdown_has_every_side_and_ratio():
    result = {**RESULT, "ratio_int8_to_fp32": 0.25, "ratio_int8_to_quanto": None, "left_out": {"quanto": "absent"}}
    text = as_markdown({"Small model": result})
    assert "| int8, minmax-w8a8 | 100.0 | 10.0 | 4 |" in text
    assert "| bf16 | 250.0 | 20.0 | ? |" in text
    assert "int8 to fp32 **0.25**" in text
    assert "int8 to quanto" not in text
    assert "Left out: quanto (absent)." in text
    assert text.startswith("Small model, on a machine:")
