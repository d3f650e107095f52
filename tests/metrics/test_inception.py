"""What is fed to Inception, against bilinear enlargement written out."""

from __future__ import annotations

import numpy as np
import torch

from qvd_core.metrics import inception
from qvd_core.metrics.inception import inception_features
from qvd_core.metrics.networks import find
from tests.closeness import assert_close
from tests.metrics.synthetic import needs, waves

pytestmark = needs("InceptionV3-2015")


def enlargement(length: int, side: int) -> np.ndarray:
    """[side, length]: each new pixel's centre, in old pixels, between the two nearest centres."""
    matrix = np.zeros((side, length))
    for row in range(side):
        centre = min(max((row + 0.5) * length / side - 0.5, 0), length - 1)
        low = min(int(centre), length - 2)
        matrix[row, low : low + 2] = 1 - (centre - low), centre - low
    return matrix


def test_frames_are_prepared_as_pytorch_fid_does():
    frame = waves(1, height=48)[0]
    large = np.einsum("yh,xw,hwc->cyx", enlargement(48, 299), enlargement(64, 299), frame)
    network = torch.jit.load(str(find("InceptionV3-2015")), map_location="cpu").eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(2 * large - 1).float()[None])
    features = inception_features(frame[None])
    assert features.shape == (1, 2048)
    assert features.dtype == np.float32
    assert_close(features, expected, 1e-4, "features")


def test_many_frames_keep_their_order(monkeypatch):
    frames = waves(3)
    together = inception_features(frames)
    monkeypatch.setattr(inception, "_AT_ONCE", 2)
    assert_close(inception_features(frames), together, 1e-4, "features")
    assert np.abs(together[0] - together[2]).max() > 0.1
