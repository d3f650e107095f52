"""AnimateDiff's UNet at full size, without its numbers, and a narrow one with the same layers to calibrate on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNetMotionModel
from torch import nn

from qvd_core.checkpoint_file import DTYPES, metadata_of, own_config
from qvd_core.layers.structure import describe, rebuild, stored_tensors
from qvd_core.models.loader import VideoModel
from qvd_core.variant import Variant, share_structure

FRAMES = 16


def narrow_model(model: VideoModel) -> VideoModel:
    """The layers of AnimateDiff on SD 1.5, a tenth as wide, in the pipeline of `model`."""
    torch.manual_seed(0)
    width = model.pipeline.text_encoder.config.hidden_size
    unet = UNetMotionModel(
        sample_size=8,
        block_out_channels=(32, 64, 128, 128),
        cross_attention_dim=width,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=32,
        use_motion_mid_block=True,
    )
    pipeline = type(model.pipeline)(**{**model.pipeline.components, "unet": unet.eval().requires_grad_(False)})
    pipeline.set_progress_bar_config(disable=True)
    return VideoModel(replace(model.spec, frames=FRAMES), pipeline, "unet", model.device)


def empty_unet(dtype: torch.dtype) -> Any:
    """AnimateDiff on SD 1.5: 1.31 billion parameters, on the meta device."""
    with init_empty_weights(include_buffers=True):
        unet = UNetMotionModel(cross_attention_dim=768, motion_max_seq_length=32, use_motion_mid_block=True)
    return unet.to(dtype)


def checkpoint_bytes(narrow: Variant, dtype: torch.dtype, denoiser: nn.Module | None = None) -> tuple[int, int]:
    """(bytes of both files of a full-size checkpoint by the narrow variant's recipe, bytes of the weights in bf16).

    Args:
        dtype: of what stays in floating point, that of the model quantized.
        denoiser: to be counted in place of the one at full size.
    """
    unet: Any = empty_unet(dtype) if denoiser is None else share_structure(denoiser)
    before = sum(2 * tensor.numel() for tensor in unet.state_dict().values())
    structure = describe(narrow.denoiser, narrow.clock)
    rebuild(unet, structure)
    tensors = stored_tensors(unet)
    config = {"recipe": narrow.recipe.to_dict(), "architecture": own_config(unet.config), "structure": structure}
    header: dict[str, Any] = {"__metadata__": metadata_of({}, {})}
    for name, t in tensors.items():
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [10**9, 10**9]}
    text = json.dumps(header, separators=(",", ":"))
    described = json.dumps(config | own_config(unet.config), indent=2)
    return sum(t.numel() * t.element_size() for t in tensors.values()) + len(text) + len(described), before
