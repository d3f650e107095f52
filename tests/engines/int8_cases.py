"""Layers and inputs for the int8 layers of every device, and what they must give, computed from codes in float64.

Codes are integers below 256 and sums below 2^31, so float64 holds every product and sum exactly; only the
rescaling at the end is rounded, to 53 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.clock import StepClock
from qvd_core.layers.inputs import (
    DynamicPerToken,
    DynamicSplit,
    StaticPerFrame,
    StaticPerStep,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import make_grid, quantize

CONVOLVE: dict[str, Any] = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}
FRAMES, SPLIT = 3, 2
STEPS, NOW = torch.tensor([9.0, 5.0, 1.0]), 1

# name: (kind, layer, shape of its input: two samples of three frames)
LAYERS: dict[str, tuple[str, Callable[[], Any], tuple[int, ...]]] = {
    "linear": ("linear", lambda: nn.Linear(12, 9), (6, 5, 12)),
    "linear-rows": ("linear", lambda: nn.Linear(12, 9, bias=False), (6, 12)),
    "linear-volumes": ("linear", lambda: nn.Linear(5, 1), (6, 2, 3, 5)),
    "conv1d": ("conv1d", lambda: nn.Conv1d(4, 6, 3, padding=1), (6, 4, 9)),
    "conv1d-stride-dilation": ("conv1d", lambda: nn.Conv1d(4, 6, 3, 2, 3, dilation=2, bias=False), (6, 4, 9)),
    "conv2d": ("conv2d", lambda: nn.Conv2d(4, 6, 3), (6, 4, 6, 5)),
    "conv2d-stride-padding": ("conv2d", lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (6, 4, 6, 5)),
    "conv2d-uneven": ("conv2d", lambda: nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 0), (1, 3)), (6, 4, 5, 6)),
    "conv2d-same": ("conv2d", lambda: nn.Conv2d(4, 6, 3, padding="same"), (6, 4, 6, 5)),
    "conv2d-same-asymmetric": ("conv2d", lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), (6, 4, 6, 5)),
    "conv2d-valid": ("conv2d", lambda: nn.Conv2d(4, 6, 3, padding="valid", bias=False), (6, 4, 6, 5)),
    "conv2d-1x1": ("conv2d", lambda: nn.Conv2d(4, 6, 1), (6, 4, 5, 5)),
    "conv2d-1x1-stride": ("conv2d", lambda: nn.Conv2d(4, 6, 1, stride=2), (6, 4, 5, 5)),
    "conv2d-1x1-padding": ("conv2d", lambda: nn.Conv2d(4, 6, 1, padding=1), (6, 4, 3, 3)),
    "conv2d-groups": ("conv2d", lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (6, 4, 6, 5)),
    "conv2d-depthwise": ("conv2d", lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), (6, 4, 6, 5)),
    "conv2d-reflect": ("conv2d", lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (6, 4, 6, 5)),
    "conv1d-circular": ("conv1d", lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (6, 4, 9)),
    "conv3d": ("conv3d", lambda: nn.Conv3d(4, 5, (1, 2, 2), stride=(1, 2, 2)), (6, 4, 2, 4, 4)),
    "conv3d-padding": ("conv3d", lambda: nn.Conv3d(4, 5, 3, padding=(1, 0, 1)), (6, 4, 2, 4, 3)),
    "conv3d-temporal": (
        "conv3d",
        lambda: nn.Conv3d(4, 5, (3, 1, 1), padding=(2, 0, 0), dilation=(2, 1, 1)),
        (6, 4, 3, 2, 2),
    ),
    "conv3d-same-asymmetric": ("conv3d", lambda: nn.Conv3d(4, 5, 2, padding="same", bias=False), (6, 4, 2, 3, 3)),
    "conv3d-replicate": ("conv3d", lambda: nn.Conv3d(4, 5, 3, padding=1, padding_mode="replicate"), (6, 4, 2, 3, 3)),
}


def build(name: str) -> tuple[str, Any, Tensor]:
    """Weights lean to one side, some channels more, so that there are zero points of either sign; so do inputs."""
    kind, make, shape = LAYERS[name]
    torch.manual_seed(len(name))
    layer = make().requires_grad_(False).eval()
    lean = torch.linspace(-1.5, 1.5, len(layer.weight)).view(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.add_(lean * layer.weight.std())
    return kind, layer, torch.randn(shape) + 0.4


@dataclass
class Granularity:
    """Which inputs share a grid.

    Attributes:
        range: its name in a recipe.
        ends: low and high of every grid, narrower than the inputs so that some are clamped; None if dynamic.
        split: whether it is of the first and the other channels.
    """

    range: str
    ends: tuple[list[float], list[float]] | None = None
    split: bool = False


GRANULARITIES = {
    "tensor": Granularity("static_per_tensor", ([-1.3], [1.7])),
    "tensor-of-no-negatives": Granularity("static_per_tensor", ([0.0], [1.7])),
    "frame": Granularity("static_per_frame", ([-1.3, -0.4, -2.1], [1.7, 2.5, 0.3])),
    "step": Granularity("static_per_step", ([-9.0, -1.3, -9.0], [9.0, 1.7, 9.0])),
    "token": Granularity("dynamic_per_token"),
    "split": Granularity("static_per_tensor", ([-1.3, -0.4], [0.7, 2.5]), split=True),
    "split-token": Granularity("dynamic_per_token", split=True),
}


def suited(names: Iterable[str], granularities: Iterable[str]) -> list[tuple[str, str]]:
    """All pairs of them that there are: only convolutions of one group ever have split inputs."""
    whole = {name for name in names if LAYERS[name][0] == "linear" or LAYERS[name][1]().groups > 1}
    return [(n, g) for n in names for g in granularities if not (GRANULARITIES[g].split and n in whole)]


def input_quantizer(granularity: str, bits: int, symmetric: bool, kind: str, channels: int) -> nn.Module:
    sort = GRANULARITIES[granularity]
    form = ActivationFormat(bits, sort.range, symmetric)
    if sort.ends is None:
        dynamic = DynamicPerToken(form, kind)
        return DynamicSplit(dynamic, SPLIT) if sort.split else dynamic
    low, high = (torch.tensor(ends) for ends in sort.ends)
    if sort.split:
        return StaticSplit(low, high, form, SPLIT, channels)
    if granularity == "step":
        clock = StepClock(nn.Identity(), STEPS)
        clock.read(nn.Identity(), (), {"timestep": STEPS[NOW]})
        return StaticPerStep(low, high, form, clock)
    return (StaticPerFrame if granularity == "frame" else StaticPerTensor)(low, high, form)


def codes_of(x: Tensor, granularity: str, bits: int, symmetric: bool, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of `x`, with scale and zero point of each value: found slice by slice, each on its one grid."""
    sort = GRANULARITIES[granularity]
    codes, scale, zero_point = torch.empty_like(x, dtype=torch.int8), torch.empty(x.shape), torch.empty(x.shape)

    def put(at: tuple[Any, ...], number: int) -> None:
        part = x[at]
        low, high = (torch.tensor(ends[number]) for ends in sort.ends) if sort.ends else (part.min(), part.max())
        grid = make_grid(low.float(), high.float(), bits, symmetric)
        codes[at], scale[at], zero_point[at] = quantize(part.float(), grid), grid.scale, grid.zero_point

    channels = [slice(SPLIT), slice(SPLIT, None)] if sort.split else [slice(None)]
    if sort.ends is None and kind == "linear":
        for row in torch.cartesian_prod(*[torch.arange(n) for n in x.shape[:-1]]).view(-1, x.dim() - 1).tolist():
            put(tuple(row), 0)
        return codes, scale, zero_point
    for sample in range(len(x)):
        for number, part in enumerate(channels):
            grids = {"frame": sample % FRAMES, "step": NOW}
            put((sample, part) if sort.split else (sample,), grids.get(granularity, number))
    return codes, scale, zero_point


@dataclass
class Case:
    """One layer with formats for its weights and inputs."""

    name: str
    granularity: str
    weights: WeightFormat
    bits: int
    symmetric: bool
    transform: ChannelTransform | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.kind, original, x = build(self.name)
        self.x = x.to(self.dtype)
        channels = x.shape[-1 if self.kind == "linear" else 1]
        split = SPLIT if GRANULARITIES[self.granularity].split else None
        self.quantizer = input_quantizer(self.granularity, self.bits, self.symmetric, self.kind, channels)
        self.layer = QuantizedLayer(
            original.to(self.dtype), self.kind, self.weights, self.quantizer, self.transform, True, split
        )

    def given(self) -> Tensor:
        """What is quantized: the input, padded by hand unless with zeros, its channels shifted and scaled."""
        x, layer = self.x, self.layer
        if self.kind != "linear" and (layer.padding_mode != "zeros" or layer.input_shift is not None):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = F.pad(x, layer.padding_by_side, mode)
        if layer.input_shift is not None:
            x = x - layer.input_shift
        return x if layer.input_scale is None else x / layer.input_scale

    @property
    def offset(self) -> bool:
        """Whether sums are of codes made unsigned, by 128 more than `bits` of them need."""
        return not self.symmetric and self.granularity in ("frame", "step", "token", "split-token")

    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        return codes_of(self.given(), self.granularity, self.bits, self.symmetric, self.kind)

    def expected(self) -> tuple[Tensor, Tensor]:
        """Output in float64, and by how much one in fp32 may miss it.

        Sums of codes are exact integers. What is rounded to 24 bits are at most the sum and the terms taken off
        it for the zero points, their products with the scales, their differences, and the sum with the bias: eight
        roundings. None is of a larger number than the sum of the magnitudes of all terms, those of zero points
        included where they are taken off in floating point: of inputs with many affine grids, which are offset to be
        unsigned besides, and of weights whose zero points do not go into their codes. An output in bf16 is rounded
        once more, to 8 bits; one of two parts in each part, and as their sum.
        """
        codes, scale, zero_point = (t.double() for t in self.codes())
        weights, weight_zero = self.layer.codes.double(), self.layer.weight_zero_point.double()
        weight_scale = self.layer.weight_scale.double()
        bias = torch.zeros(len(weights)) if self.layer.bias is None else self.layer.bias
        bias = bias.double().view(-1, *[1] * (0 if self.kind == "linear" else int(self.kind[-2])))
        # Each input has its own scale in its slice, and each slice its own sum.
        exact = self._products((codes - zero_point) * scale, (weights - weight_zero) * weight_scale) + bias
        kept = (weights - weight_zero).abs().max() > 127
        summed = weights.abs() + weight_zero.abs() if kept else (weights - weight_zero).abs()
        input_terms = codes + zero_point + 256 if self.offset else (codes - zero_point).abs()
        at_border = float((input_terms * scale).max())
        longest = self._products(input_terms * scale, summed * weight_scale, at_border) + bias.abs()
        allowed = 8 * 2**-24 * longest
        if self.dtype != torch.float32:
            parts = 3 if GRANULARITIES[self.granularity].split else 1
            allowed = allowed + parts * 2**-8 * (longest if parts > 1 else exact.abs())
        return exact, allowed

    def _products(self, x: Tensor, weights: Tensor, at_border: float = 0.0) -> Tensor:
        layer = self.layer
        if self.kind == "linear":
            return x @ weights.T
        padded = layer.padding_mode != "zeros" or layer.input_shift is not None
        x = x if padded else F.pad(x, layer.padding_by_side, value=at_border)  # centred codes there are 0
        return CONVOLVE[self.kind](x, weights, None, layer.stride, 0, layer.dilation, layer.groups)


def assert_within(actual: Tensor, expected: Tensor, allowed: Tensor, name: str) -> None:
    assert actual.shape == expected.shape, f"{name}: shapes {list(actual.shape)} and {list(expected.shape)}"
    excess = (actual.double() - expected).abs() - allowed
    assert bool((excess <= 0).all()), f"{name}: {excess.max():.3g} beyond the tolerance, of {expected.abs().max():.3g}"


def formats(name: str) -> list[tuple[WeightFormat, int, bool]]:
    """Weights of 2, 4 and 8 bits, symmetric and affine, each with both schemes of inputs, of 3, 4, 6 and 8 bits."""
    bits = {2: (3, 8), 4: (4, 6), 8: (8, 8)}
    groups = getattr(LAYERS[name][1](), "groups", 1)
    return [
        (WeightFormat(weight_bits, weights_symmetric), bits[weight_bits][weights_symmetric == symmetric], symmetric)
        for weight_bits in bits
        for weights_symmetric in (True, False)
        for symmetric in (True, False)
        # The codes of these keep their zero points, which no device takes in groups.
        if groups == 1 or weight_bits < 8 or weights_symmetric
    ]
