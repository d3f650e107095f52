"""Two clips of the same prompt and seed, and the numbers that say how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qvd_core.errors import ComparisonError
from qvd_core.metrics.fidelity import latent_error_by_step, psnr, psnr_by_frame, ssim_by_frame
from qvd_core.sampling import Clip


@dataclass(frozen=True)
class Scores:
    """Fidelity of a clip to its reference.

    Attributes:
        psnr_db: of the whole clip; infinity for equal clips.
        ssim: mean over frames.
        psnr_by_frame, ssim_by_frame: one value per frame.
        latent_error: relative error of the latents after each step.
    """

    psnr_db: float
    ssim: float
    psnr_by_frame: tuple[float, ...]
    ssim_by_frame: tuple[float, ...]
    latent_error: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; PSNR of equal frames is None, since JSON has no infinity."""

        def finite(value: float) -> float | None:
            return None if math.isinf(value) else round(value, 6)

        return {
            "psnr_db": finite(self.psnr_db),
            "ssim": round(self.ssim, 6),
            "psnr_by_frame": [finite(v) for v in self.psnr_by_frame],
            "ssim_by_frame": [round(v, 6) for v in self.ssim_by_frame],
            "latent_error": [round(v, 6) for v in self.latent_error],
        }


def compare(reference: Clip, other: Clip) -> Scores:
    """Score `other` against `reference`.

    Raises:
        ComparisonError: the clips were not asked for alike, so a difference would say nothing about
            quantization; the message names what differs.
    """
    differing = [
        name
        for name in (
            "prompt",
            "negative_prompt",
            "seed",
            "steps",
            "guidance_scale",
            "frames",
            "height",
            "width",
        )
        if getattr(reference.settings, name) != getattr(other.settings, name)
    ]
    if differing:
        raise ComparisonError(f"The clips differ in {', '.join(differing)}; sample both with the same settings.")
    by_frame = ssim_by_frame(reference.frames, other.frames)
    return Scores(
        psnr_db=psnr(reference.frames, other.frames),
        ssim=sum(by_frame) / len(by_frame),
        psnr_by_frame=tuple(psnr_by_frame(reference.frames, other.frames)),
        ssim_by_frame=tuple(by_frame),
        latent_error=tuple(latent_error_by_step(reference.latents_by_step, other.latents_by_step)),
    )
