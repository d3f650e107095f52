"""CSV files read back by another reader."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from analysis.export import Columns, as_csv, tidy


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_numbers_come_back_bit_for_bit() -> None:
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32) * 10.0 ** np.arange(-25, 25)
    doubles = np.random.default_rng(1).standard_normal(50)
    columns = {"number": np.arange(50), "single": values.astype(np.float32), "double": doubles}
    head, *rows = read(as_csv(columns))
    assert head == ["number", "single", "double"]
    assert [int(row[0]) for row in rows] == list(range(50))
    np.testing.assert_array_equal(np.array([row[1] for row in rows], dtype=np.float32), columns["single"])
    np.testing.assert_array_equal([float(row[2]) for row in rows], doubles)


def test_what_is_not_a_number_comes_back_too() -> None:
    text = as_csv({"value": np.array([np.nan, np.inf, -0.0]), "flag": np.array([True, False, True])})
    assert read(text)[1:] == [["nan", "True"], ["inf", "False"], ["-0.0", "True"]]


def test_names_may_hold_commas_quotes_and_lines() -> None:
    names = ["plain", "with, comma", 'with "quotes"', "two\nlines", "ö′"]
    text = as_csv({"name": np.array(names), "again": names})
    assert read(text)[1:] == [[name, name] for name in names]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        as_csv({"a": np.arange(3), "b": np.arange(2)})


def test_a_table_without_rows_is_its_head() -> None:
    assert as_csv({"a": np.array([]), "b": []}) == "a,b\n"


def test_a_matrix_is_one_line_per_cell_counted_from_one() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    table = tidy(matrix, "step", "other_step", "cosine")
    assert isinstance(table, Columns)
    head, *rows = read(as_csv(table.columns()))
    assert head == ["step", "other_step", "cosine"]
    assert len(rows) == 6
    for step, other, value in rows:
        assert matrix[int(step) - 1, int(other) - 1] == float(value)
