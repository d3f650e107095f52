"""Stage `export`: averaged weights as an ordinary AnimateDiff pipeline folder in fp16 safetensors.

The layout is the one real AnimateDiff users have: a 2-D UNet, a motion adapter beside it, VAE, text
encoder, tokenizer and scheduler; `AnimateDiffPipeline.from_pretrained(folder)` puts them together.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import nn

from training.autoencoder import Autoencoder, build_autoencoder
from training.denoiser import Denoiser, build_motion_adapter, build_scheduler, build_unet
from training.text import build_text_encoder, build_tokenizer


def export_pipeline(work: Path, folder: Path, *, clips_checkpoint: str = "clips.pt") -> None:
    """Write the trained parts in `work` as a pipeline to `folder`."""
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    vae = build_autoencoder()
    _load_average(Autoencoder(vae), work / "autoencoder.pt")
    unet, adapter = build_unet(), build_motion_adapter()
    text_encoder = build_text_encoder(tokenizer)
    joined = UNetMotionModel.from_unet2d(unet, adapter)
    _load_average(Denoiser(joined, text_encoder, scheduler), work / clips_checkpoint)
    _split(joined, unet, adapter)
    pipeline = AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=adapter,
        scheduler=scheduler,
    )
    # The constructor joins UNet and adapter; saving wants them apart.
    pipeline.register_modules(unet=unet.half(), motion_adapter=adapter.half())
    pipeline.vae.half()
    pipeline.text_encoder.half()
    pipeline.save_pretrained(folder, safe_serialization=True)


def _split(joined: UNetMotionModel, unet: UNet2DConditionModel, adapter: MotionAdapter) -> None:
    """Copy the weights of a joined model back into its two halves, every one of them exactly once."""
    state = joined.state_dict()
    for half in (unet, adapter):
        half.load_state_dict({name: state[name] for name in half.state_dict()})
    unclaimed = set(state) - set(unet.state_dict()) - set(adapter.state_dict())
    if unclaimed:
        raise RuntimeError(f"neither half has {sorted(unclaimed)[:3]}")


def _load_average(module: nn.Module, path: Path) -> None:
    average = torch.load(path, map_location="cpu", weights_only=True)["average"]
    module.load_state_dict({k.removeprefix("module."): v for k, v in average.items() if k.startswith("module.")})
