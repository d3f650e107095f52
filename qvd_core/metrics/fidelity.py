"""How close a clip is to its full-precision twin: PSNR and SSIM by frame, latent error by step.

Computed on raw decoder output, never on encoded video.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor


def psnr_by_frame(reference: np.ndarray, other: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB of each frame, 10 log10(1 / MSE); infinity where frames are equal.

    Args:
        reference, other: [F, H, W, 3] in [0, 1].
    """
    error = np.square(reference.astype(np.float64) - other).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return [float(value) for value in -10 * np.log10(error)]


def psnr(reference: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB of the whole clip, from the error averaged over all frames."""
    error = float(np.square(reference.astype(np.float64) - other).mean())
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim_by_frame(reference: np.ndarray, other: np.ndarray) -> list[float]:
    """Structural similarity of each frame, at most 1: Gaussian window of sigma 1.5 as in Wang et al. 2004."""
    return [
        float(
            structural_similarity(
                a,
                b,
                channel_axis=-1,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
        for a, b in zip(reference.astype(np.float64), other.astype(np.float64), strict=True)
    ]


def latent_error_by_step(reference: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """Relative error |z' - z| / |z| of the latents after each denoising step (0 is equal, 1 as large as z)."""
    return [float((b - a).norm() / a.norm()) for a, b in zip(reference, other, strict=True)]
