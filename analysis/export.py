"""Tables as CSV: any table of this package names its columns, and a file says where they come from."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def as_csv(columns: Mapping[str, np.ndarray | Sequence[Any]]) -> str:
    """Columns of equal length as CSV, numbers with all their digits.

    Raises:
        ValueError: columns differ in length.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(_plain(column) for column in columns.values()), strict=True))
    return text.getvalue()


@dataclass(frozen=True, eq=False)
class Columns:
    """A table that is nothing but its columns, for figures that show a part of a larger one."""

    values: Mapping[str, np.ndarray | Sequence[Any]]

    def columns(self) -> Mapping[str, np.ndarray | Sequence[Any]]:
        return self.values


def tidy(matrix: np.ndarray, rows: str, columns: str, values: str) -> Columns:
    """A matrix as three columns, one line per cell; rows and columns count from 1."""
    down, across = (index.ravel() + 1 for index in np.indices(matrix.shape))
    return Columns({rows: down, columns: across, values: matrix.ravel()})


def _plain(column: np.ndarray | Sequence[Any]) -> Sequence[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else column
