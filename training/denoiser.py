"""Stages `images` and `clips`: the text encoder and the UNet, on frames first, then on whole clips.

The image stage trains a UNet2DConditionModel to draw single frames from captions. The clip stage
inserts motion modules with zeroed output projections, so it begins exactly where the image stage
ended, and trains everything on 16-frame clips. Both predict v under a linear-beta DDIM schedule with
zero terminal SNR, and drop one caption in ten so that classifier-free guidance works.

Two choices decide whether motions obey the caption, found by comparing the loss under the right and
the reversed direction. Frames come from the later half of their clips, where "moving left" means
"on the left": over all moments the two words mean the same, the text encoder merges them within the
image stage, and the clip stage never parts them again. And timesteps are drawn with a density that
rises with the noise, since direction and texture are decided there; in the last two
fifths of the clip stage they are uniform, for round outlines and even surfaces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from qvd_core.shapeworld.scene import FRAMES, Scene
from training.data import batch_generator, draw_clips, draw_images
from training.latents import CHANNELS, PatchBasis
from training.run import Checkpoint, Workers, warmup_stable_decay
from training.text import WIDTH, build_text_encoder, build_tokenizer

WIDTHS = (64, 128, 128)
CAPTION_DROPOUT = 0.1
EARLIEST_MOMENT = 0.5  # of the frames in the image stage
SAVE_EVERY = 250  # steps
MOTION_LR = 1e-3


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Three levels over 8x8 latents (7.0 M parameters), text cross-attention at each."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=WIDTHS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_motion_adapter() -> MotionAdapter:
    """Motion modules for `build_unet` (2.8 M parameters) that begin as the identity."""
    adapter = MotionAdapter(
        block_out_channels=WIDTHS,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=16,
        motion_max_seq_length=32,
    )
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(parameter)
    return adapter


class Denoiser(nn.Module):
    """UNet and text encoder with the loss they share."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, scheduler: DDIMScheduler):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone(), persistent=False)

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Mean squared v error. Latents and noise [B, C, (F,) h, w], timesteps [B], tokens [B, L]."""
        signal = self.alphas_cumprod[timesteps].view(-1, *[1] * (latents.dim() - 1))
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        text = self.text_encoder(tokens).last_hidden_state
        if latents.dim() == 5:  # UNetMotionModel wants the caption once per frame
            text = text.repeat_interleave(latents.shape[2], dim=0)
        return F.mse_loss(self.unet(noisy, timesteps, text).sample.float(), target)


def draw_timesteps(count: int, generator: torch.Generator, lean: bool) -> Tensor:
    """Timesteps [count] in 0..999: uniform, or of a density proportional to the timestep where they `lean` to noise."""
    uniform = torch.rand(count, generator=generator, device=generator.device)
    return ((uniform.sqrt() if lean else uniform) * 1000).long()


def train_images(folder: Path, workers: Workers, images: int, batch: int, seed: int) -> None:
    """Train the spatial half on `images` single frames."""
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    torch.manual_seed(seed)
    model = Denoiser(build_unet(), build_text_encoder(tokenizer), scheduler)

    def draw_late_images(count: int, generator: torch.Generator) -> tuple[Tensor, list[Scene]]:
        return draw_images(count, generator, earliest=EARLIEST_MOMENT)

    _train(
        folder / "images.pt", model, tokenizer, workers, images, batch, seed + 2, 1e-3, draw_late_images, lean_until=1
    )


def train_clips(folder: Path, workers: Workers, clips: int, batch: int, seed: int) -> None:
    """Train everything on `clips` clips of 16 frames, beginning from the image stage."""
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    torch.manual_seed(seed)
    unet = build_unet()
    model = Denoiser(unet, build_text_encoder(tokenizer), scheduler)
    if not (folder / "clips.pt").exists():
        trained = torch.load(folder / "images.pt", map_location="cpu", weights_only=True)["average"]
        prefix = "module."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    model.unet = UNetMotionModel.from_unet2d(unet, build_motion_adapter())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _train(folder / "clips.pt", model, tokenizer, workers, clips, batch, seed + 3, 4e-4, draw_clips, lean_until=0.6)


def _parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Motion modules begin from nothing where the rest is trained already, so they learn faster."""
    named = list(model.named_parameters())
    motion = [p for name, p in named if "motion_modules" in name]
    rest = [p for name, p in named if "motion_modules" not in name]
    groups = [{"params": rest, "lr": lr, "peak_lr": lr}]
    return [*groups, {"params": motion, "lr": MOTION_LR, "peak_lr": MOTION_LR}] if motion else groups


def _train(
    path, model, tokenizer, workers: Workers, samples: int, batch: int, seed: int, lr: float, draw, *, lean_until: float
) -> None:
    basis = PatchBasis(**torch.load(path.parent / "basis.pt", weights_only=True)).to(workers.device)
    model = model.to(workers.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(_parameter_groups(model, lr), betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint = Checkpoint(path, model, optimizer, ema_decay=0.998)
    shared = workers.share(model)
    steps = samples // (batch * workers.count)
    unconditional = tokenizer("", padding="max_length", return_tensors="pt").input_ids

    progress = tqdm(
        range(checkpoint.step, steps),
        initial=checkpoint.step,
        total=steps,
        desc=path.stem,
        disable=not workers.leads,
    )
    recent: list[float] = []
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * warmup_stable_decay(step, steps)
        generator = batch_generator(seed, step, workers.rank, workers.device)
        pictures, scenes = draw(batch, generator)
        frames = pictures.shape[1] if pictures.dim() == 5 else 1
        latents = basis.encode(pictures.flatten(0, -4))
        if frames == FRAMES:
            latents = latents.unflatten(0, (batch, frames)).transpose(1, 2)
        tokens = tokenizer([scene.caption for scene in scenes], padding="max_length", return_tensors="pt").input_ids.to(
            workers.device
        )
        dropped = torch.rand(batch, generator=generator, device=workers.device) < CAPTION_DROPOUT
        tokens = torch.where(dropped[:, None], unconditional.to(workers.device), tokens)
        timesteps = draw_timesteps(batch, generator, lean=step < lean_until * steps)
        noise = torch.randn(latents.shape, generator=generator, device=workers.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=workers.device.type == "cuda"):
            loss = shared(latents, noise, timesteps, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        checkpoint.average.update_parameters(model)
        checkpoint.step = step + 1
        recent.append(loss.item())
        if workers.leads and len(recent) == 50:
            mean = sum(recent) / len(recent)
            recent.clear()
            progress.set_postfix(loss=f"{mean:.4f}")
            checkpoint.log(loss=mean)
        if workers.leads and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
            checkpoint.save()
