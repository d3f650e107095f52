"""A norm that has taken in the channel transformation of what reads it, so that nothing is computed twice.

    ((gamma * norm(x) + beta + P) - shift) / scale = gamma / scale * norm(x) + (beta - shift) / scale + P / scale

P is the table of frame positions that motion modules add after the norm. It belongs to the sum that is
transformed, so it is folded too; the public port of QVD forgets it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.errors import ModelError
from qvd_core.layers.description import Description, read_fields
from qvd_core.layers.exact import ExactBuffers
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
    plain = plain_norm(getattr(block, child))
    if not isinstance(plain, (nn.LayerNorm, nn.GroupNorm)) or plain.weight is None or plain.bias is None:
        return False
    if child in POSITIONED and getattr(block, "pos_embed", None) is not None:
        _position_norms(block)
    norm: Any = getattr(block, child)
    folded: nn.Module = transformed_norm(plain, transform)
    if isinstance(norm, PositionedNorm):
        scale = transform.scale.to(norm.positions.device)
        folded = PositionedNorm(folded, (norm.positions.float() / scale).to(norm.positions.dtype))
    setattr(block, child, folded)
    return True


POSITIONED = ("norm1", "norm2")
"""Norms of a diffusers transformer block whose output gets the positions of `pos_embed`."""


def _position_norms(block: Any) -> None:
    """One table serves both norms, which may be transformed differently: give each its own."""
    for positioned in POSITIONED:
        setattr(block, positioned, PositionedNorm(getattr(block, positioned), block.pos_embed.pe))
    block.pos_embed = None


def plain_norm(module: nn.Module) -> nn.Module:
    """The norm itself, without its positions."""
    return module.norm if isinstance(module, PositionedNorm) else module


class FoldedTransform(ExactBuffers):
    """What a norm has taken in, kept beside it for those who look at layers one by one; it computes nothing."""

    exact = ("shift", "scale")
    shift: Tensor
    scale: Tensor

    def __init__(self, transform: ChannelTransform):
        super().__init__()
        self.register_buffer("shift", transform.shift)
        self.register_buffer("scale", transform.scale)


def folded_transform(norm: nn.Module) -> ChannelTransform | None:
    """The channel transformation that `norm` has taken in; None if it has not."""
    kept = getattr(plain_norm(norm), "folded", None)
    return ChannelTransform(kept.shift, kept.scale) if isinstance(kept, FoldedTransform) else None


def describe_norm(norm: nn.Module) -> Description | None:
    """What is special about a norm; None if nothing is."""
    positioned, folded = isinstance(norm, PositionedNorm), folded_transform(norm) is not None
    return {"kind": "norm", "positioned": positioned, "folded": folded} if positioned or folded else None


def rebuild_norm(denoiser: nn.Module, name: str, values: Description) -> None:
    """Make the norm at path `name` what it describes itself as, without its numbers.

    Raises:
        ModelError: there is no such norm, or no such table of positions.
    """
    values = read_fields(values, name, positioned=bool, folded=bool)
    parent, _, child = name.rpartition(".")
    block: Any = denoiser.get_submodule(parent)
    if values["positioned"] and getattr(block, "pos_embed", None) is not None and child in POSITIONED:
        _position_norms(block)
    norm = getattr(block, child)
    plain: Any = plain_norm(norm)
    if isinstance(norm, PositionedNorm) is not values["positioned"] or not isinstance(
        plain, (nn.LayerNorm, nn.GroupNorm)
    ):
        raise ModelError(f"The checkpoint describes {name} as a norm with positions, which this model has not.")
    if values["folded"]:
        plain = copy.deepcopy(plain)  # not the model's own
        empty = torch.empty(len(plain.weight), device="meta")
        plain.folded = FoldedTransform(ChannelTransform(empty, empty.clone()))
    if values["positioned"]:
        plain = PositionedNorm(plain, torch.empty_like(norm.positions, device="meta"))
    setattr(block, child, plain)


def transformed_norm(norm: Any, transform: ChannelTransform) -> nn.Module:
    """A copy of a LayerNorm or GroupNorm whose output is the transformed one."""
    folded = copy.deepcopy(norm)
    scale, shift = transform.scale.to(norm.weight.device), transform.shift.to(norm.weight.device)
    folded.weight = nn.Parameter((norm.weight.float() / scale).to(norm.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(((norm.bias.float() - shift) / scale).to(norm.bias.dtype), requires_grad=False)
    folded.folded = FoldedTransform(ChannelTransform(shift.float(), scale.float()))
    return folded
