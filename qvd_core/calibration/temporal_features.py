"""Temporal features, enumerated exactly: they depend on the step alone, so no video has to be sampled.

QVD (arXiv 2407.11585), section 4.1, calls "temporal features" the inputs of every `time_emb_proj`, the
linear layer that adds the time to a residual block. In a UNet of diffusers every block receives the same

    emb = time_embedding(time_proj(t))

and applies its own activation, SiLU, before its `time_emb_proj`. For a sampler of T steps there are thus
exactly T temporal features, whatever the prompt, the noise and the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvd_core.errors import CalibrationError
from qvd_core.models.loader import VideoModel

ADDED_EMBEDDINGS = ("add_embedding", "fps_embedding")
"""Submodules of diffusers' UNets whose output joins the time embedding: sizes, frame rates, images."""


@dataclass(frozen=True, eq=False)
class TemporalFeatures:
    """What every `time_emb_proj` receives while a sampler runs.

    Attributes:
        timesteps: fp32 [T], in sampling order, on the training schedule (usually 999 down to 0).
        values: fp32 [T, C], one feature per step, dimensionless; SiLU keeps them above -0.2785.
    """

    timesteps: Tensor
    values: Tensor


def temporal_features(model: VideoModel, steps: int) -> TemporalFeatures:
    """The temporal features of `model` over its own sampler's timesteps.

    Args:
        model: it is read, not modified; only its time embedding runs, which takes milliseconds.
        steps: sampler length, 1 to the number of training timesteps.

    Raises:
        CalibrationError: the model has no such layers, they depend on more than the step, or `steps` is
            out of range.
    """
    owners = [s.name.rpartition(".")[0] for s in model.sites if s.role == "temporal_features"]
    if not owners:
        raise CalibrationError(
            f"{model.spec.name} ({type(model.denoiser).__name__}) has no layers known to take temporal features;"
            " they are the time_emb_proj of a UNet, such as AnimateDiff's. Choose such a model."
        )
    denoiser: Any = model.denoiser
    added = [name for name in ADDED_EMBEDDINGS if getattr(denoiser, name, None) is not None]
    if added:
        raise CalibrationError(
            f"{model.spec.name} adds its {added[0]} to the time embedding, so its temporal features depend on more"
            " than the step and cannot be enumerated."
        )
    timesteps = sampler_timesteps(model, steps)
    block: Any = denoiser.get_submodule(owners[0])
    weight: Tensor = block.time_emb_proj.weight
    with torch.no_grad():
        embedding = denoiser.time_embedding(denoiser.time_proj(timesteps.to(weight.device)).to(weight.dtype))
        values = embedding if block.skip_time_act else block.nonlinearity(embedding)
    return TemporalFeatures(timesteps.float(), values.float().cpu())


def sampler_timesteps(model: VideoModel, steps: int) -> Tensor:
    """The timesteps [T] a sampling run of `steps` steps visits; from a scheduler of its own.

    Raises:
        CalibrationError: `steps` is out of range, or the timesteps depend on more.
    """
    shared = model.pipeline.scheduler
    longest = shared.config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= longest:
        raise CalibrationError(f"steps = {steps!r} is out of range; choose a whole number from 1 to {longest}.")
    scheduler = type(shared).from_config(shared.config)
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, TypeError) as error:  # some want to know more, such as the size of the clip
        raise CalibrationError(
            f"The timesteps of {type(scheduler).__name__} depend on more than their number ({error}), so they are not"
            " known before sampling; choose a recipe that does not treat every step by itself."
        ) from error
    return scheduler.timesteps.cpu()
