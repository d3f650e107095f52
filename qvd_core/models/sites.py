"""Sites: the layers that can be quantized, each with the role it plays.

A paper says "temporal attention" or "temporal features"; every architecture calls the modules
something else. One small file per family translates, and methods, recipes and views speak of roles
only. A family without such a file still works: its layers have the generic roles "linear" and
"convolution", the outermost two "first_layer" and "last_layer", and those of a UNet's time path theirs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

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

EVERY_UNET = ((r"^time_embedding\.", "time_embedding"), (r"\.time_emb_proj$", "temporal_features"))
"""What all UNets of diffusers have in common, so that temporal features are known without a map."""

NORMED_INPUTS: dict[str, tuple[tuple[str, tuple[str, ...], str | None], ...]] = {
    "UNetMotionModel": unet_motion.NORMED_INPUTS,
}


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
        sees_frames: whether its input's leading axis is samples x frames, so that frames stay apart.
    """

    name: str
    role: str
    kind: str
    block: str
    in_channels: int
    out_channels: int
    parameters: int
    has_bias: bool
    sees_frames: bool


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
        role = next((role for pattern, role in patterns or EVERY_UNET if re.search(pattern, name)), generic)
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
                sees_frames=bool(patterns) and not role.startswith(("time_embedding", "temporal")),
            )
        )
    if len(sites) > 1 and not patterns:
        sites[0], sites[-1] = replace(sites[0], role="first_layer"), replace(sites[-1], role="last_layer")
    return tuple(sites)


def has_site_map(denoiser: nn.Module) -> bool:
    """Whether this family's roles are known, rather than generic."""
    return type(denoiser).__name__ in ROLE_PATTERNS


@dataclass(frozen=True)
class SharedInput:
    """One tensor and the layers that read it.

    Attributes:
        consumers: names of sites.
        norm: module path of the norm that makes the tensor and feeds nothing else, so that a
            transformation of channels can be folded into it; None if there is none.
    """

    consumers: tuple[str, ...]
    norm: str | None


def find_inputs(denoiser: nn.Module, sites: tuple[Site, ...]) -> tuple[SharedInput, ...]:
    """The inputs of all sites, each site in exactly one; of unknown families every site by itself."""
    patterns = NORMED_INPUTS.get(type(denoiser).__name__, ())
    names = {site.name for site in sites}
    inputs, taken = [], set[str]()
    for site in sites:
        if site.name in taken:
            continue
        found = SharedInput((site.name,), None)
        for pattern, consumers, norm in patterns:
            if match := re.match(pattern, site.name):
                expanded = tuple(match.expand(c) for c in consumers)
                if names.issuperset(expanded):
                    found = SharedInput(expanded, norm and match.expand(norm))
                break
        taken.update(found.consumers)
        inputs.append(found)
    return tuple(inputs)


def shortcut_split(denoiser: nn.Module, site_name: str) -> int | None:
    """How many leading channels of this layer's input were not skipped past the bottom of the UNet.

    None where the input is no such concatenation, or the family is unknown.
    """
    if type(denoiser).__name__ != "UNetMotionModel":
        return None
    return unet_motion.shortcut_split(denoiser, site_name)
