"""Learned perceptual image patch similarity of two clips, frame by frame (Zhang et al. 2018, weights v0.1).

A trunk trained on ImageNet gives five feature maps of each frame; they are normalized at every pixel, squared
differences are weighted by learned heads, averaged over pixels and summed over the five.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvd_core.metrics.networks import MetricUnavailable, find, load_arrays
from qvd_core.metrics.tensors import to_tensor

LPIPS = {"alex": "LPIPS (AlexNet)", "vgg": "LPIPS (VGG-16)"}

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_NORM_EPSILON = 1e-10

Convolution = Callable[..., nn.Module]


def lpips_by_frame(
    reference: np.ndarray, other: np.ndarray, *, trunk: str = "alex", device: str = "cpu"
) -> list[float]:
    """Distance of each frame to its counterpart, at the frames' own size: 0 for equal frames, rarely above 1.

    Args:
        reference, other: [F, H, W, 3] in [0, 1].
        trunk: "alex", the usual choice for evaluation, or "vgg".
        device: a torch device.

    Raises:
        MetricUnavailable: the weights are not here, or the frames are smaller than the trunk can see.
    """
    fewest = _TRUNKS[trunk].fewest_pixels
    height, width = reference.shape[1:3]
    if min(height, width) < fewest:
        raise MetricUnavailable(
            f"{LPIPS[trunk]} needs frames of at least {fewest}x{fewest} pixels; these have {width}x{height}."
        )
    network = _network(trunk, device)
    with torch.inference_mode():
        return [
            float(network(to_tensor(a[None], device), to_tensor(b[None], device)))
            for a, b in zip(reference, other, strict=True)
        ]


class Lpips(nn.Module):
    """Two frames [1, 3, H, W] in [0, 1] to their distance [1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self, stages: list[nn.Sequential], heads: list[Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ParameterList([nn.Parameter(head, requires_grad=False) for head in heads])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, reference: Tensor, other: Tensor) -> Tensor:
        x = (2 * torch.cat([reference, other]) - 1 - self.shift) / self.scale
        distance = x.new_zeros(1)
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            unit = x / (x.norm(dim=1, keepdim=True) + _NORM_EPSILON)
            difference = (unit[:1] - unit[1:]).square()
            distance = distance + F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return distance


def _alexnet(convolution: Convolution) -> list[list[nn.Module]]:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2)

    return [
        [convolution(0, stride=4, padding=2)],
        [pool(), convolution(1, padding=2)],
        [pool(), convolution(2, padding=1)],
        [convolution(3, padding=1)],
        [convolution(4, padding=1)],
    ]


def _vgg16(convolution: Convolution) -> list[list[nn.Module]]:
    blocks = [(0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]
    stages = [[convolution(number, padding=1) for number in block] for block in blocks]
    return [stages[0], *([nn.MaxPool2d(2), *stage] for stage in stages[1:])]


@dataclass(frozen=True)
class _Trunk:
    """A trunk's name as a network and in its file, its stages, and the side of the smallest frame it can see."""

    network: str
    key: str
    stages: Callable[[Convolution], list[list[nn.Module]]]
    fewest_pixels: int


_TRUNKS = {
    "alex": _Trunk("LPIPS-AlexNet", "AlexNet_0", _alexnet, 31),
    "vgg": _Trunk("LPIPS-VGG16", "VGG16_0", _vgg16, 16),
}


@functools.cache
def _network(trunk: str, device: str) -> Lpips:
    parts = _TRUNKS[trunk]
    arrays = load_arrays(find(parts.network))

    def convolution(number: int, stride: int = 1, padding: int = 0) -> nn.Module:
        return _convolution(arrays[parts.key][f"Conv_{number}"], stride, padding)

    stages = [nn.Sequential(*layers) for layers in parts.stages(convolution)]
    heads = [_kernel(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]) for number in range(len(stages))]
    return Lpips(stages, heads).eval().to(device)


def _convolution(params: dict[str, Any], stride: int, padding: int) -> nn.Module:
    """Convolution and ReLU; the kernel says its own shape."""
    kernel = _kernel(params["kernel"])
    channels_out, channels_in, _, side = kernel.shape
    layer = nn.Conv2d(channels_in, channels_out, side, stride, padding)
    layer.load_state_dict({"weight": kernel, "bias": torch.tensor(params["bias"])})
    return nn.Sequential(layer, nn.ReLU())


def _kernel(array: np.ndarray) -> Tensor:
    """[H, W, in, out] as JAX keeps it, to torch's [out, in, H, W]."""
    return torch.tensor(array).permute(3, 2, 0, 1).contiguous()
