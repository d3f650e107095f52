"""A denoiser compiled in a second: two residual blocks of one class, an attention, a grouped convolution."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from qvd_core.device import Device
from qvd_core.models.catalog import CATALOG
from qvd_core.models.loader import VideoModel
from training.denoiser import build_scheduler

CHANNELS = 8


class ToyUNet(nn.Module):
    """Called as the UNets of diffusers are; layers have the roles every UNet's have."""

    def __init__(self) -> None:
        super().__init__()
        self.time_proj = Timesteps(CHANNELS, True, 0)
        self.time_embedding = TimestepEmbedding(CHANNELS, 16)
        self.conv_in = nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.resnets = nn.ModuleList(ResnetBlock2D(in_channels=CHANNELS, temb_channels=16, groups=4) for _ in range(2))
        self.attention = Attention(CHANNELS, cross_attention_dim=6, heads=2, dim_head=4)
        self.grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2)
        self.conv_out = nn.Conv2d(CHANNELS, 4, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        embedding = self.time_embedding(self.time_proj(timestep.expand(len(sample))))
        x = self.conv_in(sample)
        for resnet in self.resnets:
            x = resnet(x, embedding)
        tokens = x.flatten(2).mT
        x = x + self.attention(tokens, encoder_hidden_states).mT.reshape(x.shape)
        return (self.conv_out(torch.relu(self.grouped(x))),)


def toy_model(denoiser: nn.Module | None = None) -> VideoModel:
    """Just what quantization and conversion look at: it cannot sample a clip."""
    torch.manual_seed(0)
    pipeline: Any = SimpleNamespace(
        unet=(denoiser or ToyUNet()).requires_grad_(False).eval(), scheduler=build_scheduler()
    )
    spec = replace(next(iter(CATALOG.values())), name="toy", steps=4)
    return VideoModel(spec, pipeline, "unet", Device("cpu", "for the test"))


def toy_call(timestep: float, samples: int = 2, height: int = 6, width: int = 5, tokens: int = 3) -> dict[str, Tensor]:
    """Arguments of the denoiser."""
    generator = torch.Generator().manual_seed(int(timestep))
    return {
        "sample": torch.randn(samples, 4, height, width, generator=generator),
        "timestep": torch.tensor(timestep),
        "encoder_hidden_states": torch.randn(samples, tokens, 6, generator=generator),
    }
