"""Sampling a clip from a model or from its quantized variant, with one seam for everything that watches.

Noise is drawn on the CPU from the seed, so the same seed starts from the same noise on any device and
in both halves of a comparison. Every run has its own pipeline object and scheduler around the shared
networks, so runs side by side cannot disturb each other.
"""

from __future__ import annotations

import copy
import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qvd_core.errors import GenerationError, memory_errors
from qvd_core.models.loader import VideoModel
from qvd_core.variant import share_structure

if TYPE_CHECKING:
    from qvd_core.variant import Variant

MAX_STEPS = 1000
MAX_FRAMES = 128
MAX_SIDE = 2048


@dataclass(frozen=True)
class Settings:
    """What to sample.

    Attributes:
        prompt, negative_prompt: text.
        seed: 0 to 2^63 - 1.
        steps: denoising steps, 1 to 1000.
        guidance_scale: classifier-free guidance; 1 switches it off.
        frames: clip length.
        height, width: pixels.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance_scale: float = 4.0
    frames: int = 16
    height: int = 64
    width: int = 64


@dataclass(frozen=True)
class StepInfo:
    """What a watcher sees after each denoising step.

    Attributes:
        index: 0-based step that has just ended.
        total: number of steps.
        timestep: the sampler's timestep, of 1000.
        latents: current latents [1, C, F, h, w] (or the family's own layout); not to be modified.
        preview: decodes the present guess of the clean clip to frames [F, H, W, 3] in [0, 1]; costs one
            decoding, so call it only when somebody looks. None where the family's VAE is not known.
    """

    index: int
    total: int
    timestep: float
    latents: Tensor
    preview: Callable[[], np.ndarray] | None


@dataclass(frozen=True, eq=False)
class Clip:
    """A sampled clip.

    Attributes:
        frames: float32 [F, H, W, 3] in [0, 1], straight from the decoder.
        latents_by_step: the latents after each step, on the CPU in fp32.
        settings: what was asked for.
        seconds: measured wall-clock time of sampling and decoding.
    """

    frames: np.ndarray
    latents_by_step: tuple[Tensor, ...]
    settings: Settings
    seconds: float


def default_settings(model: VideoModel, prompt: str, **changes: Any) -> Settings:
    """The model's own default settings for `prompt`, with `changes` where they are not None."""
    spec = model.spec
    unit = _pixels_per_latent(model)
    sample = getattr(model.denoiser.config, "sample_size", None) or 32
    defaults: dict[str, Any] = {
        "steps": spec.steps,
        "guidance_scale": spec.guidance_scale,
        "frames": spec.frames - (spec.frames - 1) % _frames_per_latent(model),
        "height": spec.height or (sample if isinstance(sample, int) else sample[0]) * unit,
        "width": spec.width or (sample if isinstance(sample, int) else sample[1]) * unit,
    }
    defaults.update({name: value for name, value in changes.items() if value is not None})
    return Settings(prompt=prompt, **defaults)


def generate(
    source: VideoModel | Variant,
    settings: Settings,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Clip:
    """Sample one clip.

    Args:
        source: a model, or a quantized variant of one.
        settings: what to sample.
        on_step: called after every step; raising from it (`Cancelled`, say) ends the run at once.

    Raises:
        GenerationError: settings out of range for this model, a prompt too long, or a result that is not finite.
        OutOfMemory: the clip does not fit the device.
    """
    model = source if isinstance(source, VideoModel) else source.model
    check_settings(model, settings)
    if not isinstance(source, VideoModel) and source.frames not in (None, settings.frames):
        raise GenerationError(
            f"This variant has one grid for each of {source.frames} frames, and {settings.frames} are asked for: sample"
            f" {source.frames} frames, or calibrate with {settings.frames}."
        )
    return sample(model, source.denoiser, settings, on_step)


def sample(
    model: VideoModel,
    denoiser: nn.Module,
    settings: Settings,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Clip:
    """`generate` with any stand-in for the model's denoiser; `settings` must have been checked."""
    pipeline = _private_pipeline(model, denoiser)
    clean = _CleanEstimate(pipeline.scheduler)
    latents_by_step: list[Tensor] = []

    def step_ended(pipe: Any, index: int, timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = values["latents"]
        latents_by_step.append(latents.detach().to("cpu", torch.float32, copy=True))
        if on_step is not None:
            decode = getattr(pipe, "decode_latents", None)
            guess = clean.latest if clean.latest is not None else latents

            preview = None if decode is None else lambda: _to_frames(decode(guess))
            on_step(StepInfo(index, settings.steps, float(timestep), latents, preview))
        return values

    wanted = {
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "num_frames": settings.frames,
        "height": settings.height,
        "width": settings.width,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
        "output_type": "np",
        "callback_on_step_end": step_ended,
    }
    accepted = inspect.signature(pipeline.__call__).parameters
    lacking = [name for name in ("prompt", "num_frames", "callback_on_step_end") if name not in accepted]
    if lacking:
        raise GenerationError(
            f"{type(pipeline).__name__} is not a text-to-video pipeline: it takes no {', '.join(lacking)}."
        )
    started = time.perf_counter()
    size = f"{settings.frames} frames of {settings.width}x{settings.height}"
    with memory_errors(size, "Ask for fewer frames or a smaller size."), torch.inference_mode():
        result = pipeline(**{name: value for name, value in wanted.items() if name in accepted})
    seconds = time.perf_counter() - started
    frames = np.asarray(result.frames[0], dtype=np.float32)
    if not np.isfinite(frames).all():
        raise GenerationError(
            "The clip contains NaN or infinite values, so it is not shown."
            " Give the most sensitive sites more bits, or use a higher precision."
        )
    return Clip(frames, tuple(latents_by_step), settings, seconds)


def check_settings(model: VideoModel, settings: Settings) -> None:
    """Refuse what this model cannot sample, before any work is done.

    Raises:
        GenerationError: with what was received and what is possible.
    """
    if not settings.prompt.strip():
        raise GenerationError("The prompt is empty; describe the clip in a few words.")
    _check_whole("seed", settings.seed, 0, 2**63 - 1)
    _check_whole("steps", settings.steps, 1, min(MAX_STEPS, _training_timesteps(model)))
    longest = getattr(model.denoiser.config, "motion_max_seq_length", None) or MAX_FRAMES
    _check_whole("frames", settings.frames, 1, longest)
    together = _frames_per_latent(model)
    if (settings.frames - 1) % together:
        nearest = 1 + round((settings.frames - 1) / together) * together
        raise GenerationError(
            f"frames = {settings.frames} must be one more than a multiple of {together}; try {nearest}."
        )
    unit = _pixels_per_latent(model)
    for side in ("height", "width"):
        value = getattr(settings, side)
        _check_whole(side, value, unit, MAX_SIDE)
        if value % unit:
            raise GenerationError(
                f"{side} = {value} is not a multiple of {unit} pixels; try {max(unit, round(value / unit) * unit)}."
            )
    if not 0 <= settings.guidance_scale <= 100:
        raise GenerationError(f"guidance_scale = {settings.guidance_scale} is out of range; choose 0 to 100.")
    for what in ("prompt", "negative_prompt"):
        text = getattr(settings, what)
        if not fits_tokenizer(model, text):
            tokenizer = model.pipeline.tokenizer
            raise GenerationError(
                f"The {what.replace('_', ' ')} has {len(tokenizer(text).input_ids)} tokens, but {model.spec.name}"
                f" reads {tokenizer.model_max_length}; shorten it (it would be cut off silently otherwise)."
            )


def fits_tokenizer(model: VideoModel, text: str) -> bool:
    """Whether the model reads all of `text`, rather than cutting it off."""
    tokenizer = getattr(model.pipeline, "tokenizer", None)
    return tokenizer is None or len(tokenizer(text).input_ids) <= tokenizer.model_max_length


def _check_whole(what: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise GenerationError(f"{what} = {value!r} is out of range; choose a whole number from {low} to {high}.")


def _training_timesteps(model: VideoModel) -> int:
    return model.pipeline.scheduler.config.get("num_train_timesteps", MAX_STEPS)


def _pixels_per_latent(model: VideoModel) -> int:
    pipeline: Any = model.pipeline
    factor: Any = getattr(pipeline, "vae_scale_factor", None) or getattr(pipeline, "vae_scale_factor_spatial", 8)
    patch: Any = getattr(model.denoiser.config, "patch_size", 1)
    return int(factor * (patch if isinstance(patch, int) else patch[-1]))


def _frames_per_latent(model: VideoModel) -> int:
    """How many frames a causal video VAE packs into one latent after the first; 1 for image VAEs."""
    return int(getattr(model.pipeline, "vae_scale_factor_temporal", 1))


def _private_pipeline(model: VideoModel, denoiser: nn.Module) -> Any:
    """A pipeline of this run's own: shared networks, `denoiser` in its place, a fresh scheduler."""
    shared = model.pipeline
    scheduler = type(shared.scheduler).from_config(shared.scheduler.config)
    components = {**shared.components, model.denoiser_name: denoiser, "scheduler": scheduler}
    if components.get("tokenizer") is not None:
        # Fast tokenizers keep the padding and truncation of their last call.
        components["tokenizer"] = copy.deepcopy(components["tokenizer"])
    if isinstance(components.get("vae"), nn.Module):
        # Some decoders (Wan's) remember features from frame to frame, so every run has its own.
        components["vae"] = share_structure(components["vae"])
    pipeline = type(shared)(**components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _CleanEstimate:
    """Remembers the scheduler's guess of the clean latents, which makes a better preview than noise."""

    def __init__(self, scheduler: Any):
        self.latest: Tensor | None = None
        step = scheduler.step

        @functools.wraps(step)  # pipelines look at its signature to see whether it takes the generator
        def remembering(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            self.latest = getattr(output, "pred_original_sample", None)
            return output

        scheduler.step = remembering


def _to_frames(decoded: Tensor) -> np.ndarray:
    """Decoder output [1, 3, F, H, W] in [-1, 1] to frames [F, H, W, 3] in [0, 1]."""
    return (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy()
