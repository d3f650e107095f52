"""A norm that has taken in the channel transformation of what reads it, so that nothing is computed twice.

    ((gamma * norm(x) + beta + P) - shift) / scale = gamma / scale * norm(x) + (beta - shift) / scale + P / scale

P is the table of frame positions that motion modules add after the norm. It belongs to the sum that is
transformed, so it is folded too; the public port of QVD forgets it.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from qvd_core.quantizers.channel_transform import ChannelTransform


class PositionedNorm(nn.Module):
    """A norm and the table of positions [1, length, C] added to its output [B, frames, C]."""

    positions: Tensor

    def __init__(self, norm: nn.Module, positions: Tensor):
        super().__init__()
        self.norm = norm
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.positions[:, : x.shape[1]]


def fold_into_norm(denoiser: nn.Module, name: str, transform: ChannelTransform) -> bool:
    """Replace the norm at path `name`, and the positions added to it, by one whose output is transformed.

    Returns:
        False, and nothing is changed, if the norm has no weight and bias per channel to fold into.
    """
    parent, _, child = name.rpartition(".")
    block: Any = denoiser.get_submodule(parent)
    norm: Any = getattr(block, child)
    plain = norm.norm if isinstance(norm, PositionedNorm) else norm
    if not isinstance(plain, (nn.LayerNorm, nn.GroupNorm)) or plain.weight is None or plain.bias is None:
        return False
    if child in POSITIONED and getattr(block, "pos_embed", None) is not None:
        # One table serves both norms, which may be transformed differently: give each its own.
        table = block.pos_embed.pe
        for positioned in POSITIONED:
            setattr(block, positioned, PositionedNorm(getattr(block, positioned), table))
        block.pos_embed = None
        norm = getattr(block, child)
    folded: nn.Module = transformed_norm(plain, transform)
    if isinstance(norm, PositionedNorm):
        scale = transform.scale.to(norm.positions.device)
        folded = PositionedNorm(folded, (norm.positions.float() / scale).to(norm.positions.dtype))
    setattr(block, child, folded)
    return True


POSITIONED = ("norm1", "norm2")
"""Norms of a diffusers transformer block whose output gets the positions of `pos_embed`."""


def transformed_norm(norm: Any, transform: ChannelTransform) -> nn.Module:
    """A copy of a LayerNorm or GroupNorm whose output is the transformed one."""
    folded = copy.deepcopy(norm)
    scale, shift = transform.scale.to(norm.weight.device), transform.shift.to(norm.weight.device)
    folded.weight = nn.Parameter((norm.weight.float() / scale).to(norm.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(((norm.bias.float() - shift) / scale).to(norm.bias.dtype), requires_grad=False)
    return folded
