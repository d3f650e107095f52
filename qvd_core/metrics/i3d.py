"""I3D's view of a clip: the features of FVD and KVD.

Inflated 3D Inception (Carreira and Zisserman 2017), trained on Kinetics-400; FVD is defined on its 400 logits
(Unterthiner et al. 2018). It sees motion: shuffled frames move FVD far more than they move a frame FID.

The network is built from the file: kernels say their own shapes, so only strides and the order of layers are
written here. Batch norm is folded into the kernels. Feature maps are [1, C, T, H, W].
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvd_core.metrics.networks import MetricUnavailable, find, load_arrays
from qvd_core.metrics.tensors import to_tensor

FVD = "FVD (I3D-K400 logits)"
KVD = "KVD (I3D-K400 logits)"

FEWEST_FRAMES = 9  # two frames must be left after three halvings, for the pooling over pairs
_SIDE = 224
_NORM_EPSILON = 1e-3


def i3d_features(clips: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Logits of each clip, resized to 224x224 whatever its aspect ratio, bilinearly and without antialiasing.

    A clip's features do not depend on the others, so they may be kept.

    Args:
        clips: [N, F, H, W, 3] in [0, 1], at least 9 frames each.
        device: a torch device.

    Returns:
        float32 [N, 400].

    Raises:
        MetricUnavailable: the weights are not here, or the clips are too short.
    """
    if clips.shape[1] < FEWEST_FRAMES:
        raise MetricUnavailable(f"I3D needs at least {FEWEST_FRAMES} frames; these clips have {clips.shape[1]}.")
    network = _network(device)
    with torch.inference_mode():
        return np.stack([network(_prepared(clip, device))[0].cpu().numpy() for clip in clips])


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow's SAME puts them: ceil(length / stride) outputs, the odd one behind."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


class I3D(nn.Module):
    """Clips [1, 3, F, 224, 224] in [-1, 1] to logits [1, 400].

    Args:
        variables: the nested dictionaries of arrays in the file: "params" and "batch_stats".
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, variables: dict[str, Any]) -> None:
        super().__init__()
        params, statistics = variables["params"], variables["batch_stats"]

        def unit(name: str, stride: int = 1) -> nn.Module:
            return _Unit(params[name], statistics[name], stride)

        def mixed(*names: str) -> list[nn.Module]:
            return [_Mixed(params[name], statistics[name]) for name in names]

        self.layers = nn.Sequential(
            unit("Conv3d_1a_7x7", stride=2),
            _MaxPool((1, 3, 3), (1, 2, 2)),
            unit("Conv3d_2b_1x1"),
            unit("Conv3d_2c_3x3"),
            _MaxPool((1, 3, 3), (1, 2, 2)),
            *mixed("Mixed_3b", "Mixed_3c"),
            _MaxPool((3, 3, 3), (2, 2, 2)),
            *mixed("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
            _MaxPool((2, 2, 2), (2, 2, 2)),
            *mixed("Mixed_5b", "Mixed_5c"),
            nn.AvgPool3d((2, 7, 7), stride=1),
        )
        last = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
        self.register_buffer("weight", _kernel(last["kernel"]))
        self.register_buffer("bias", torch.tensor(last["bias"]))

    def forward(self, clips: Tensor) -> Tensor:
        return F.conv3d(self.layers(clips), self.weight, self.bias).mean(dim=(2, 3, 4))


class _Unit(nn.Module):
    """Convolution, batch norm without a scale, ReLU."""

    weight: Tensor
    bias: Tensor

    def __init__(self, params: dict[str, Any], statistics: dict[str, Any], stride: int = 1) -> None:
        super().__init__()
        norm = statistics["BatchNorm_0"]
        scale = 1 / np.sqrt(norm["var"].ravel().astype(np.float64) + _NORM_EPSILON)
        bias = params["BatchNorm_0"]["bias"] - norm["mean"].ravel() * scale
        self.register_buffer("weight", _kernel(params["Conv_0"]["kernel"] * scale))
        self.register_buffer("bias", torch.tensor(bias).float())
        self.stride = (stride, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_same(x, tuple(self.weight.shape[2:]), self.stride)
        return F.conv3d(x, self.weight, self.bias, self.stride).relu_()


class _MaxPool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        # Zeros serve as the lowest value, since everything pooled comes out of a ReLU.
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Inception module: 1x1x1; 1x1x1 then 3x3x3, twice; max-pooling then 1x1x1; side by side."""

    def __init__(self, params: dict[str, Any], statistics: dict[str, Any]) -> None:
        super().__init__()

        def unit(name: str) -> nn.Module:
            return _Unit(params[name], statistics[name])

        self.branches = nn.ModuleList(
            [
                unit("Branch_0/Conv3d_0a_1x1"),
                nn.Sequential(unit("Branch_1/Conv3d_0a_1x1"), unit("Branch_1/Conv3d_0b_3x3")),
                nn.Sequential(unit("Branch_2/Conv3d_0a_1x1"), unit("Branch_2/Conv3d_0b_3x3")),
                nn.Sequential(_MaxPool((3, 3, 3), (1, 1, 1)), unit("Branch_3/Conv3d_0b_1x1")),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _kernel(array: np.ndarray) -> Tensor:
    """[T, H, W, in, out] as JAX keeps it, to torch's [out, in, T, H, W]."""
    return torch.tensor(array).float().permute(4, 3, 0, 1, 2).contiguous()


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    sides = [same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True)]
    # F.pad counts axes from the last.
    return F.pad(x, [zeros for side in reversed(sides) for zeros in side])


def _prepared(clip: np.ndarray, device: str) -> Tensor:
    frames = F.interpolate(to_tensor(clip, device), size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return (2 * frames - 1).transpose(0, 1)[None]


@functools.cache
def _network(device: str) -> I3D:
    return I3D(load_arrays(find("I3D-K400"))).eval().to(device)
