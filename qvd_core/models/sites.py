"""Sites: the layers that can be quantized, each with the role it plays.

A paper says "temporal attention" or "temporal features"; every architecture calls the modules
something else. One small file per family translates, and methods, recipes and views speak of roles
only. A family without such a file still works: its layers have the generic roles "linear" and
"convolution".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from qvd_core.models import unet_motion

LAYER_KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
}

ROLE_PATTERNS: dict[str, tuple[tuple[str, str], ...]] = {
    "UNetMotionModel": unet_motion.ROLE_PATTERNS,
}
"""Per denoiser class: (regular expression on the module path, role), the first match deciding."""


@dataclass(frozen=True)
class Site:
    """A layer that can be quantized.

    Attributes:
        name: module path inside the denoiser.
        role: what it does, in the family's terms ("temporal_attention") or generic ("linear").
        kind: "linear", "conv1d", "conv2d" or "conv3d".
        block: the part of the network it belongs to ("down_blocks.0", "mid_block"; "" for the outermost).
        in_channels, out_channels: sizes of the reduced and of the produced axis.
        parameters: weights and biases together.
        has_bias: whether there are biases.
    """

    name: str
    role: str
    kind: str
    block: str
    in_channels: int
    out_channels: int
    parameters: int
    has_bias: bool


def find_sites(denoiser: nn.Module) -> tuple[Site, ...]:
    """All quantizable layers of `denoiser`, in the order of its modules."""
    patterns = ROLE_PATTERNS.get(type(denoiser).__name__, ())
    sites = []
    for name, module in denoiser.named_modules():
        kind = LAYER_KINDS.get(type(module))
        if kind is None:
            continue
        linear = isinstance(module, nn.Linear)
        generic = "linear" if linear else "convolution"
        role = next((role for pattern, role in patterns if re.search(pattern, name)), generic)
        block = re.match(r"(\w*block\w*(?:\.\d+)?)\.", name)
        sites.append(
            Site(
                name=name,
                role=role,
                kind=kind,
                block=block[1] if block else "",
                in_channels=module.in_features if linear else module.in_channels,
                out_channels=module.out_features if linear else module.out_channels,
                parameters=sum(p.numel() for p in module.parameters()),
                has_bias=module.bias is not None,
            )
        )
    return tuple(sites)


def has_site_map(denoiser: nn.Module) -> bool:
    """Whether this family's roles are known, rather than generic."""
    return type(denoiser).__name__ in ROLE_PATTERNS
