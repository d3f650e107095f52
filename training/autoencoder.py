"""Stage `autoencoder`: an AutoencoderKL that decodes, then encodes, the fixed latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from training.data import batch_generator, draw_images
from training.latents import CHANNELS, PatchBasis
from training.run import Checkpoint, Workers, warmup_stable_decay

ENCODER_SHARE = 0.45  # of the images


def build_autoencoder() -> AutoencoderKL:
    """Eightfold, 16 latent channels, 1.7 M parameters; latents have unit variance, so no scaling factor."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    )


class Autoencoder(nn.Module):
    """Both regressions onto the fixed latents; which one is trained depends on `decoding`."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, latents: torch.Tensor, decoding: bool) -> torch.Tensor:
        if decoding:
            return F.mse_loss(self.vae.decode(latents).sample, images * 2 - 1)
        posterior = self.vae.encode(images * 2 - 1).latent_dist
        # The pipeline may sample: ask for a small, constant spread beside the right mean.
        return F.mse_loss(posterior.mean, latents) + 1e-4 * (posterior.logvar + 8).square().mean()


def train_autoencoder(folder: Path, workers: Workers, images: int, batch: int, seed: int) -> None:
    """Train on `images` drawn frames, the first 55 % for the decoder, the rest for the encoder."""
    basis = PatchBasis(**torch.load(folder / "basis.pt", weights_only=True)).to(workers.device)
    torch.manual_seed(seed)
    vae = build_autoencoder()
    model = Autoencoder(vae).to(workers.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.0)
    checkpoint = Checkpoint(folder / "autoencoder.pt", model, optimizer, ema_decay=0.999)
    shared = workers.share(model, partly_used=True)
    steps = images // (batch * workers.count)
    decoder_steps = round(steps * (1 - ENCODER_SHARE))

    progress = tqdm(
        range(checkpoint.step, steps),
        initial=checkpoint.step,
        total=steps,
        desc="autoencoder",
        disable=not workers.leads,
    )
    for step in progress:
        decoding = step < decoder_steps
        begin, length = (0, decoder_steps) if decoding else (decoder_steps, steps - decoder_steps)
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * warmup_stable_decay(step - begin, length, warmup=100, cooldown=0.7)
        pictures, _ = draw_images(batch, batch_generator(seed + 1, step, workers.rank, workers.device))
        latents = basis.encode(pictures)
        given = latents + 0.02 * torch.randn_like(latents) if decoding else latents
        loss = shared(pictures, given, decoding)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        checkpoint.average.update_parameters(model)
        checkpoint.step = step + 1
        if workers.leads and step % 100 == 99:
            progress.set_postfix(loss=f"{loss.item():.4f}", part="decoder" if decoding else "encoder")
            checkpoint.log(loss=loss.item(), decoding=decoding)
        if workers.leads and (step % 500 == 499 or step + 1 == steps):
            checkpoint.save()
