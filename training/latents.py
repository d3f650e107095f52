"""The latent space: principal components of 8x8 pixel patches, fixed before anything is trained.

Training a small VAE jointly (encoder, decoder, KL) gave 23 dB and latent channels of very unequal
scale; anchoring it on a linear transform known in closed form gave 31 dB. So latents are
`(patch - mean) @ components / std**0.6`, scaled to unit variance overall: the partial whitening keeps
more signal in the leading channels, as a trained VAE does, without starving the rest. The denoiser
trains on these latents from the first minute; the AutoencoderKL learns to decode and encode them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PATCH = 8
CHANNELS = 16
WHITENING = 0.6


@dataclass(frozen=True)
class PatchBasis:
    """A linear map between pixels in [-1, 1] and latents: mean [192], forward [192, 16], inverse [16, 192]."""

    mean: Tensor
    forward: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, images: Tensor) -> PatchBasis:
        """Principal components of the patches of `images` [N, 3, H, W] in [0, 1]."""
        patches = _patches(images * 2 - 1).flatten(0, 2)
        mean = patches.mean(0)
        centred = patches - mean
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        std = variance[-CHANNELS:].flip(0).sqrt()
        vectors = vectors[:, -CHANNELS:].flip(1)
        whiten = std**-WHITENING
        whiten = whiten / (std * whiten).square().mean().sqrt()
        return cls(mean, vectors * whiten, (vectors / whiten).T)

    def encode(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to latents [N, 16, H/8, W/8]."""
        return ((_patches(images * 2 - 1) - self.mean) @ self.forward).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """The linear reconstruction in [0, 1]; what the AutoencoderKL decoder must beat."""
        pixels = latents.permute(0, 2, 3, 1) @ self.inverse + self.mean
        n, rows, columns, _ = pixels.shape
        pixels = pixels.view(n, rows, columns, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return (pixels.reshape(n, 3, rows * PATCH, columns * PATCH) + 1) / 2

    def to(self, device: torch.device) -> PatchBasis:
        return PatchBasis(self.mean.to(device), self.forward.to(device), self.inverse.to(device))


def _patches(images: Tensor) -> Tensor:
    """[N, 3, H, W] to [N, H/8, W/8, 192]."""
    return images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)
