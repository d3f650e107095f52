"""Assertions on tensors and arrays that print how far apart they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def assert_close(actual: Any, expected: Any, tolerance: float, name: str = "values") -> None:
    """Every element within `tolerance`, absolutely."""
    actual, expected = _as_doubles(actual), _as_doubles(expected)
    assert actual.shape == expected.shape, f"{name}: shapes {list(actual.shape)} and {list(expected.shape)}"
    difference = (actual - expected).abs()
    # Written so that NaN fails too.
    assert bool((difference <= tolerance).all()), f"{name}: {_in_words(difference)}; allowed {tolerance:.3g}"


def assert_same(actual: Any, expected: Any, name: str = "values") -> None:
    """Every element equal, bit for bit up to the sign of zero."""
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} and {expected.dtype}"
    assert_close(actual, expected, 0.0, name)


def assert_same_clip(actual: Any, expected: Any) -> None:
    """Two clips of `generate` that are equal in frames and in the latents of every step."""
    assert len(actual.latents_by_step) == len(expected.latents_by_step)
    pairs = zip(actual.latents_by_step, expected.latents_by_step, strict=True)
    for step, (a, b) in enumerate(pairs):
        assert_same(a, b, f"latents of step {step}")
    assert_same(actual.frames, expected.frames, "frames")


def differs(actual: Any, expected: Any) -> bool:
    """Whether two clips of `generate` have different frames."""
    return not np.array_equal(actual.frames, expected.frames)


def _as_doubles(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().double()


def _in_words(difference: torch.Tensor) -> str:
    return f"max difference {difference.max():.3g}, mean difference {difference.mean():.3g}"
