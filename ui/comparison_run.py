"""One comparison, from button to result: what is run, in which order, and what it reports on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.methods import bound_to_steps
from qvd_core.errors import CalibrationError, GenerationError
from qvd_core.recipe import Recipe
from ui.registry import Registry

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel
    from qvd_core.sampling import Clip, Settings, StepInfo
    from qvd_core.scores import Scores
    from qvd_core.variant import Variant

PREVIEW_FRAMES = 4
SECONDS_BETWEEN_PREVIEWS = 0.4


@dataclass(frozen=True)
class Request:
    """What the visitor asked for; None takes the model's default. `engine` is "simulate" or "int8"."""

    model: str
    recipe: Recipe
    prompt: str
    seed: int
    steps: int | None
    guidance_scale: float | None
    engine: str = "simulate"


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a run is: what it does now, the share done (0 to 1), and perhaps a new picture, uint8 [H, W, 3]."""

    text: str
    share: float
    picture: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """The two clips with their scores; `reused` says that the reference came from an earlier run."""

    variant: Variant
    reference: Clip
    quantized: Clip
    scores: Scores
    reused: bool


Report = Callable[[Progress], None]


def run_comparison(registry: Registry, request: Request, report: Report) -> Result:
    """Load, calibrate if need be, quantize, sample both, score.

    `report` is called after every denoising step and may raise `Cancelled` there.

    Raises:
        QvdError: what loading, calibrating, quantizing or sampling raise.
    """
    from qvd_core.sampling import generate
    from qvd_core.scores import compare

    recipe, prompt, seed = request.recipe, request.prompt, request.seed
    model, settings = prepared(
        registry, request.model, recipe, prompt, seed, request.steps, request.guidance_scale, report
    )
    report(Progress(f"Quantizing by {request.recipe.name}; searching thresholds may take some seconds…", 0))
    variant = registry.variant(model, request.recipe, request.engine)

    reference = registry.reference(model, settings)
    reused = reference is not None
    rounds = 1 if reused else 2
    if reference is None:
        reference = generate(model, settings, _watch("Full precision", 0, rounds, report))
        registry.keep_reference(model, reference)
    quantized = generate(variant, settings, _watch(f"Quantized, {request.recipe.name}", rounds - 1, rounds, report))
    return Result(variant, reference, quantized, compare(reference, quantized), reused)


def prepared(
    registry: Registry,
    model_name: str,
    recipe: Recipe,
    prompt: str,
    seed: int,
    steps: int | None,
    guidance_scale: float | None,
    report: Report,
) -> tuple[VideoModel, Settings]:
    """The model and the checked settings of a clip; calibrated, if `recipe` needs it and nobody has done it.

    Raises:
        QvdError: what loading, checking and calibrating raise.
    """
    from qvd_core.sampling import check_settings, default_settings

    report(Progress(f"Loading {model_name}…", 0))
    model = registry.model(model_name)
    settings = default_settings(model, prompt, seed=seed, steps=steps, guidance_scale=guidance_scale)
    check_settings(model, settings)
    _check_steps(registry, model, recipe, settings.steps)
    if recipe.needs_statistics and registry.statistics(model) is None:
        _calibrate(registry, model, report)
    return model, settings


def _check_steps(registry: Registry, model: VideoModel, recipe: Recipe, steps: int) -> None:
    """Refuse, before anything is sampled, steps that a recipe with ranges or tables for each step does not know.

    Raises:
        GenerationError: with the number of steps there are.
    """
    from qvd_core.calibration.temporal_features import sampler_timesteps

    statistics = registry.statistics(model) if recipe.needs_statistics else None
    known = model.spec.steps if statistics is None else statistics.run.steps
    if steps == known or not bound_to_steps(model.sites, recipe):
        return
    missing = set(sampler_timesteps(model, steps).tolist()) - set(sampler_timesteps(model, known).tolist())
    if missing:
        raise GenerationError(
            f"{recipe.name} treats every step by itself and knows the {known} steps of its calibration only; sampling"
            f" in {steps} would meet others. Set Steps to {known}, or choose a recipe without ranges or tables for"
            " each step."
        )


def _calibrate(registry: Registry, model: VideoModel, report: Report) -> None:
    """Calibrate a model that ships no statistics, once for all visitors."""
    from qvd_core.calibration.calibrate import calibrate, calibration_prompts

    prompts = calibration_prompts(model)

    def step_ended(number: int, count: int, info: StepInfo) -> None:
        done = number * info.total + info.index + 1
        text = f"Calibrating on prompt {number + 1} of {count}: step {info.index + 1} of {info.total}"
        report(Progress(text, done / (count * info.total)))

    try:
        registry.keep_statistics(model, calibrate(model, prompts, on_step=step_ended))
    except CalibrationError as error:
        raise CalibrationError(f"{error} A dynamic recipe needs no calibration.") from error


def _watch(what: str, before: int, rounds: int, report: Report) -> Callable[[StepInfo], None]:
    """A step callback that reports progress, with a picture when the last one is old enough."""
    last = [0.0]

    def step_ended(info: StepInfo) -> None:
        picture = None
        # Pictures cost a decoding each, so a fast sampler shows some steps only.
        if info.preview is not None and time.monotonic() - last[0] > SECONDS_BETWEEN_PREVIEWS:
            picture = _film_strip(info.preview())
            last[0] = time.monotonic()
        done = (before + (info.index + 1) / info.total) / rounds
        report(Progress(f"{what}: step {info.index + 1} of {info.total}", done, picture))

    return step_ended


def _film_strip(frames: np.ndarray) -> np.ndarray:
    """A few frames, evenly spaced, side by side: [F, H, W, 3] in [0, 1] to uint8 [H, n W, 3]."""
    picks = np.linspace(0, len(frames) - 1, min(PREVIEW_FRAMES, len(frames))).round().astype(int)
    return (np.concatenate([frames[i] for i in picks], axis=1) * 255 + 0.5).astype(np.uint8)
