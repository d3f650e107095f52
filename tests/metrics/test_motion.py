"""Smoothness, flickering and consistency: the protocols with stand-ins, then the networks' verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from qvd_core.metrics import motion
from qvd_core.metrics.mobilenet import mobilenet_features
from qvd_core.metrics.motion import frame_consistency, motion_smoothness, temporal_flickering
from qvd_core.metrics.networks import MetricUnavailable
from tests.metrics.synthetic import needs, waves


def levels(*values: float) -> np.ndarray:
    """A clip whose frames are of one gray each."""
    return np.broadcast_to(np.array(values, np.float32)[:, None, None, None], (len(values), 32, 32, 3)).copy()


def test_flickering_in_closed_form():
    assert temporal_flickering(levels(0.5, 0.5, 0.5)) == 1
    assert temporal_flickering(levels(0.25, 0.75, 0.25)) == 0.5
    assert temporal_flickering(levels(0, 0.125, 0.5)) == pytest.approx(1 - 0.25)


def test_smoothness_judges_every_second_frame_by_its_neighbours(monkeypatch):
    """With averaging in the network's place: errors 0.25 at frame 1 and 0 at frame 3; frame 5 has no right side."""
    monkeypatch.setattr(motion, "middle_frame", lambda first, last: (first + last) / 2)
    assert motion_smoothness(levels(0, 0.5, 0.5, 0.25, 0, 1)) == pytest.approx(1 - 0.25 / 2)


@needs("RIFE-HDv3")
def test_smooth_clips_are_smoother_than_shuffled_ones():
    clip = waves(9)
    shuffled = clip[np.random.default_rng(0).permutation(9)]
    assert motion_smoothness(np.repeat(clip[:1], 3, axis=0)) == pytest.approx(1, abs=0.01)
    assert 1 > motion_smoothness(clip) > motion_smoothness(shuffled) + 0.05


@needs("MobileNetV2-IN1K")
def test_consistency_compares_with_the_previous_and_the_first_frame():
    clip = waves(4)

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    features = mobilenet_features(clip).astype(np.float64)
    expected = [
        (cosine(features[i], features[i - 1]) + cosine(features[i], features[0])) / 2 for i in range(1, len(features))
    ]
    assert frame_consistency(clip) == pytest.approx(np.mean(expected), abs=1e-9)
    assert frame_consistency(clip[[0, 0, 0]]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("measure", "fewest"), [(motion_smoothness, 3), (temporal_flickering, 2), (frame_consistency, 2)]
)
def test_too_few_frames(measure, fewest):
    with pytest.raises(MetricUnavailable, match=f"at least {fewest} frames; the clip has {fewest - 1}"):
        measure(waves(fewest - 1))
