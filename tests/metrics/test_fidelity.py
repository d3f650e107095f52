"""PSNR and SSIM against scikit-image called independently, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from qvd_core.metrics.fidelity import latent_error_by_step, psnr, psnr_by_frame, ssim_by_frame
from tests.closeness import assert_close


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


REFERENCE = noise(5, 24, 20, 3, seed=0)
OTHER = np.clip(REFERENCE + 0.1 * (noise(5, 24, 20, 3, seed=1) - 0.5) * np.arange(1, 6)[:, None, None, None], 0, 1)
OTHER = OTHER.astype(np.float32)


def test_psnr_agrees_with_scikit_image():
    expected = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(REFERENCE, OTHER, strict=True)]
    assert_close(psnr_by_frame(REFERENCE, OTHER), expected, 1e-5, "PSNR by frame")
    whole = peak_signal_noise_ratio(REFERENCE.astype(float), OTHER.astype(float), data_range=1.0)
    assert psnr(REFERENCE, OTHER) == pytest.approx(whole, abs=1e-6)


def test_ssim_agrees_with_scikit_image():
    """The settings its documentation gives for matching Wang et al. 2004."""
    expected = [
        structural_similarity(
            a, b, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(REFERENCE.astype(float), OTHER.astype(float), strict=True)
    ]
    assert_close(ssim_by_frame(REFERENCE, OTHER), expected, 1e-6, "SSIM by frame")


@pytest.mark.parametrize("error", [0.001, 0.01, 0.5])
def test_psnr_of_a_constant_error_in_closed_form(error):
    black = np.zeros((3, 16, 16, 3), np.float32)
    expected = -20 * math.log10(error)
    assert_close(psnr_by_frame(black, black + np.float32(error)), [expected] * 3, 1e-5, "PSNR")
    assert psnr(black, black + np.float32(error)) == pytest.approx(expected, abs=1e-5)


def test_psnr_of_a_clip_averages_errors_not_decibels():
    black = np.zeros((2, 16, 16, 3), np.float32)
    other = black.copy()
    other[1] = 0.1
    assert psnr_by_frame(black, other) == [math.inf, pytest.approx(20, abs=1e-5)]
    assert psnr(black, other) == pytest.approx(-10 * math.log10(0.01 / 2), abs=1e-5)


def test_ssim_of_two_constants_in_closed_form():
    """Without structure only luminance is left: (2ab + C1) / (a^2 + b^2 + C1), C1 = 0.01^2."""
    a, b = np.full((1, 16, 16, 3), 0.5, np.float32), np.full((1, 16, 16, 3), 0.8, np.float32)
    expected = (2 * 0.5 * 0.8 + 1e-4) / (0.25 + 0.64 + 1e-4)
    assert ssim_by_frame(a, b)[0] == pytest.approx(expected, abs=1e-6)


def test_identical_clips():
    assert psnr_by_frame(REFERENCE, REFERENCE) == [math.inf] * 5
    assert psnr(REFERENCE, REFERENCE.copy()) == math.inf
    assert ssim_by_frame(REFERENCE, REFERENCE) == [pytest.approx(1, abs=1e-12)] * 5


def test_order_of_the_clips_does_not_matter_for_errors():
    assert psnr(REFERENCE, OTHER) == psnr(OTHER, REFERENCE)
    assert_close(ssim_by_frame(OTHER, REFERENCE), ssim_by_frame(REFERENCE, OTHER), 1e-12, "SSIM")


def test_worse_clips_score_lower():
    scores = psnr_by_frame(REFERENCE, OTHER), ssim_by_frame(REFERENCE, OTHER)
    for by_frame in scores:  # the noise grows with every frame
        assert by_frame == sorted(by_frame, reverse=True)


def test_precision_is_that_of_doubles():
    """In fp32, an error of one part in a million would drown beside 1."""
    bright = np.ones((1, 16, 16, 3))
    assert psnr(bright, bright - 1e-6) == pytest.approx(120, abs=1e-4)


def test_latent_error_in_closed_form():
    z = [torch.full((1, 4, 2, 2, 2), 2.0), torch.ones(1, 4, 2, 2, 2), torch.ones(1, 4, 2, 2, 2)]
    other = [z[0] * 1.5, z[1].clone(), -z[2]]
    assert latent_error_by_step(z, other) == [pytest.approx(0.5), 0.0, pytest.approx(2.0)]


def test_latents_of_different_lengths():
    with pytest.raises(ValueError, match="shorter"):
        latent_error_by_step([torch.ones(1), torch.ones(1)], [torch.ones(1)])
