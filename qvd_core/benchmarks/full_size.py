"""The inference benchmark on the shapes of AnimateDiff over Stable Diffusion 1.5: 1.3 billion parameters.

Weights are random and input ranges made up, which is right here and nowhere else: how long a product takes does
not depend on its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from qvd_core.benchmarks.inference import benchmark_inference
from qvd_core.device import pick_device
from qvd_core.engines.integer import engine_on
from qvd_core.errors import QvdError, memory_errors
from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.inputs import OncePerInput, StaticPerTensor
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.models.catalog import ModelSpec
from qvd_core.models.loader import VideoModel
from qvd_core.models.sites import find_inputs
from qvd_core.recipe import get_recipe
from qvd_core.variant import Variant, share_structure

NAME = "AnimateDiff-SD1.5 shapes, random weights"
RECIPE = get_recipe("minmax-w8a8")
PROMPT_TOKENS, STEPS = 77, 25


def benchmark_full_size(
    *,
    frames: int = 8,
    size: int = 256,
    repeats: int = 3,
    compiled: bool = True,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """`benchmark_inference` against bf16 and torchao, without guidance; needs some 12 GB.

    Args:
        frames: 1 to 32.
        size: height and width in pixels, a multiple of 64.

    Raises:
        QvdError: frames or size out of range.
        EngineError: this machine has no integer arithmetic worth measuring.
        OutOfMemory: the weights do not fit.
    """
    if not 1 <= frames <= 32:
        raise QvdError(f"frames = {frames} is out of range; choose 1 to 32.")
    if size < 64 or size % 64:
        raise QvdError(f"size = {size} is no multiple of 64 pixels.")
    engine_on(pick_device("auto").name)  # before a model is built in vain
    with memory_errors(NAME, "It needs some 12 GB."):
        on_stage("building the model")
        model = _model()
        latents = torch.randn(1, 4, frames, size // 8, size // 8)
        text = torch.randn(frames, PROMPT_TOKENS, 768)
        inputs = ((latents, torch.tensor(500)), {"encoder_hidden_states": text})
        return benchmark_inference(
            model,
            recipes=(RECIPE,),
            against=("bf16", "torchao"),
            variants={RECIPE.name: _variant(model)},
            inputs=inputs,
            repeats=repeats,
            compiled=compiled,
            one_at_a_time=True,
            on_stage=on_stage,
        ) | {"frames": frames, "size": size}


def _model() -> VideoModel:
    from diffusers import DDIMScheduler, UNetMotionModel

    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = UNetMotionModel(cross_attention_dim=768, motion_max_seq_length=32, use_motion_mid_block=True)
    finally:
        torch.set_default_dtype(previous)
    device = pick_device("auto")
    spec = ModelSpec(NAME, NAME, "", None, None, 16, 512, 512, STEPS, 7.5, 8, ())
    pipeline = SimpleNamespace(unet=unet.eval().requires_grad_(False).to(device.name), scheduler=DDIMScheduler())
    return VideoModel(spec, pipeline, "unet", device)


def _variant(model: VideoModel) -> Variant:
    """The named recipe with ranges made up, since nothing has been calibrated."""
    denoiser = share_structure(model.denoiser)
    kinds = {site.name: site.kind for site in model.sites}
    for shared in find_inputs(model.denoiser, model.sites):
        quantizer: nn.Module = StaticPerTensor(torch.tensor([-4.0]), torch.tensor([4.0]), ActivationFormat(8))
        if len(shared.consumers) > 1:
            quantizer = OncePerInput(quantizer, len(shared.consumers))
        quantizer.to(model.device.name)
        for name in shared.consumers:
            parent, _, child = name.rpartition(".")
            layer: Any = denoiser.get_submodule(name)
            quantized = QuantizedLayer(layer, kinds[name], WeightFormat(8), quantizer)
            quantized.keep_packed()  # never computed, only converted
            setattr(denoiser.get_submodule(parent), child, quantized)
    return Variant(model, RECIPE, denoiser.eval())
