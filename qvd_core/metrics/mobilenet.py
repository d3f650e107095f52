"""MobileNetV2's view of a frame (Sandler et al. 2018, ImageNet): 1280 pooled features, which say what is in it."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvd_core.metrics.networks import find
from qvd_core.metrics.tensors import to_tensor

_SIDE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_AT_ONCE = 16
# Expansion, channels, repeats and first stride of each group of inverted residuals: table 2 of the paper.
_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_features(frames: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Pooled features of each frame, resized to 224x224 bilinearly (with antialiasing where it shrinks).

    Args:
        frames: [N, H, W, 3] in [0, 1].
        device: a torch device.

    Returns:
        float32 [N, 1280], none negative.

    Raises:
        MetricUnavailable: the weights are not here.
    """
    network = _network(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (_MEAN, _STD))
    features = []
    with torch.inference_mode():
        for start in range(0, len(frames), _AT_ONCE):
            batch = to_tensor(frames[start : start + _AT_ONCE], device)
            batch = F.interpolate(batch, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
            features.append(network((batch - mean) / std).cpu().numpy())
    return np.concatenate(features)


class MobileNetV2(nn.Module):
    """Normalized frames [N, 3, 224, 224] to features [N, 1280]. The names of its parts are torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 32, 3, stride=2)]
        channels = 32
        for expansion, channels_out, repeats, stride in _GROUPS:
            for number in range(repeats):
                layers.append(_InvertedResidual(channels, channels_out, expansion, stride if number == 0 else 1))
                channels = channels_out
        layers.append(_convolution(channels, 1280, 1))
        self.features = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        return self.features(frames).mean(dim=(2, 3))


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        channels = channels_in * expansion
        self.conv = nn.Sequential(
            *([_convolution(channels_in, channels, 1)] if expansion > 1 else []),
            _convolution(channels, channels, 3, stride, groups=channels),
            nn.Conv2d(channels, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.adds_input = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds_input else self.conv(x)


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(inplace=True),
    )


@functools.cache
def _network(device: str) -> MobileNetV2:
    state = torch.load(find("MobileNetV2-IN1K"), map_location="cpu", weights_only=True)
    network = MobileNetV2()
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("classifier.")})
    return network.eval().to(device)
