"""Recipes against each other on many prompts: fidelity to full precision, and whether captions still hold."""

from __future__ import annotations

import statistics as mathematics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import QvdError
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe
from qvd_core.sampling import Clip, StepInfo, default_settings, generate
from qvd_core.scores import compare
from qvd_core.shapeworld.checker import read_clip
from qvd_core.shapeworld.scene import SIZE, parse_caption
from qvd_core.variant import quantize

REFERENCE = "full precision"


@dataclass(frozen=True)
class ClipResult:
    """One clip of one recipe.

    Attributes:
        recipe: its name, or "full precision".
        prompt, seed: what was sampled.
        psnr_db, ssim, final_latent_error: fidelity to the full-precision clip; None for that clip itself.
        caption: per attribute (shape, colour, motion, texture, background) whether an image-analysis
            checker reads what the prompt says; None if the prompt is not a caption of the embedded world
            or the clip not of its size.
        seconds: measured sampling time; the quantized ones are simulated, so theirs is no speed claim.
    """

    recipe: str
    prompt: str
    seed: int
    psnr_db: float | None
    ssim: float | None
    final_latent_error: float | None
    caption: dict[str, bool] | None
    seconds: float


def evaluate(
    model: VideoModel,
    recipes: Sequence[Recipe],
    prompts: Sequence[str],
    *,
    statistics: Statistics | None = None,
    seed: int = 0,
    steps: int | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    on_result: Callable[[ClipResult], None] | None = None,
) -> list[ClipResult]:
    """Sample every prompt in full precision and under every recipe, with seeds `seed`, `seed` + 1, ...

    Raises:
        QvdError: no prompts; or what `quantize` and `generate` raise.
    """
    if not prompts:
        raise QvdError("Evaluation needs at least one prompt.")
    names = [REFERENCE, *(recipe.name for recipe in recipes)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise QvdError(f"Results are kept by name, and {', '.join(twice)} occurs twice; rename one recipe.")
    variants = [quantize(model, recipe, statistics) for recipe in recipes]
    results: list[ClipResult] = []

    def keep(result: ClipResult) -> None:
        results.append(result)
        if on_result is not None:
            on_result(result)

    for number, prompt in enumerate(prompts):
        settings = default_settings(model, prompt, seed=seed + number, steps=steps)
        reference = generate(model, settings, on_step)
        keep(_result(REFERENCE, reference, None))
        for variant in variants:
            keep(_result(variant.recipe.name, generate(variant, settings, on_step), reference))
    return results


def summarize(results: Sequence[ClipResult]) -> list[dict[str, Any]]:
    """One row per recipe: clips, mean and standard error of fidelity, share of right caption attributes.

    Clips identical to their reference have an infinite PSNR; they are counted and left out of its mean.
    """
    rows: list[dict[str, Any]] = []
    for recipe in dict.fromkeys(r.recipe for r in results):
        own = [r for r in results if r.recipe == recipe]
        identical = sum(r.psnr_db == float("inf") for r in own)
        row: dict[str, Any] = {"recipe": recipe, "clips": len(own), "identical": identical}
        for measure in ("psnr_db", "ssim", "final_latent_error"):
            values = [v for r in own if (v := getattr(r, measure)) is not None and v != float("inf")]
            row[measure] = round(mathematics.fmean(values), 4) if values else None
            error = mathematics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            row[f"{measure}_standard_error"] = None if error is None else round(error, 4)
        readings = [r.caption for r in own if r.caption is not None]
        if readings:
            row["caption_accuracy"] = {
                attribute: round(mathematics.fmean(reading[attribute] for reading in readings), 4)
                for attribute in readings[0]
            }
        row["seconds_per_clip"] = round(mathematics.median(r.seconds for r in own), 2)
        rows.append(row)
    return rows


def _result(recipe: str, clip: Clip, reference: Clip | None) -> ClipResult:
    scores = None if reference is None else compare(reference, clip)
    scene = parse_caption(clip.settings.prompt)
    readable = clip.frames.shape[0] > 1 and clip.frames.shape[1:3] == (SIZE, SIZE)  # what the checker knows
    return ClipResult(
        recipe=recipe,
        prompt=clip.settings.prompt,
        seed=clip.settings.seed,
        psnr_db=None if scores is None else scores.psnr_db,
        ssim=None if scores is None else scores.ssim,
        final_latent_error=None if scores is None else scores.latent_error[-1],
        caption=read_clip(clip.frames).agreement(scene) if scene is not None and readable else None,
        seconds=clip.seconds,
    )
