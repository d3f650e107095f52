"""Plotly's packed arrays back as numbers."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np


def decoded(value: Any) -> np.ndarray:
    """A typed array {"dtype", "bdata", "shape"} as plotly.js reads it; plain lists as they are."""
    if not isinstance(value, dict):
        return np.array(value)
    array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]).newbyteorder("<"))
    return array.reshape([int(size) for size in value.get("shape", str(array.size)).split(",")])
