"""The quantized Linear and convolution, simulated: integer codes, computed with in floating point.

A layer holds its weights as integer codes with one grid per output channel, and the real numbers these
codes stand for, dequantized once. Its inputs are put on their grid as they arrive. Products and sums
are then those of the integer computation up to floating-point rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.quantizers.uniform import Grid, dequantize, fake_quantize, make_grid, quantize
from qvd_core.recipe import ActivationFormat, WeightFormat


class StaticPerTensor(nn.Module):
    """One grid for all inputs, fixed by calibration."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat):
        super().__init__()
        grid = make_grid(low.reshape(1), high.reshape(1), form.bits, form.symmetric)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.code_min, self.code_max = grid.code_min, grid.code_max

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, Grid(self.scale, self.zero_point, self.code_min, self.code_max))


class DynamicPerToken(nn.Module):
    """One grid per token, found as it arrives: a row of a linear input, a whole sample of a convolution's."""

    def __init__(self, form: ActivationFormat, kind: str):
        super().__init__()
        self.form = form
        self.axes: tuple[int, ...] = (-1,) if kind == "linear" else tuple(range(1, 2 + int(kind[-2])))

    def forward(self, x: Tensor) -> Tensor:
        # Grids in fp32 whatever the input: bf16 cannot tell codes beyond 256 apart.
        low, high = x.amin(self.axes, keepdim=True).float(), x.amax(self.axes, keepdim=True).float()
        return fake_quantize(x, make_grid(low, high, self.form.bits, self.form.symmetric))


class QuantizedLayer(nn.Module):
    """A Linear or convolution of a variant. Shapes and meaning of the output are the original layer's.

    Attributes:
        codes: integer weights in the original shape, int8; None if the weights stay in floating point.
        weight_scale: [out, 1, ...], one scale per output channel.
        weight: what the layer multiplies with, dequantized from the codes.
        bias: the original layer's own tensor.
    """

    codes: Tensor | None
    weight_scale: Tensor | None
    weight_zero_point: Tensor | None
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, original: Any, kind: str, weights: WeightFormat | None, quantize_input: nn.Module | None):
        super().__init__()
        self.kind = kind
        self.quantize_input = quantize_input
        weight: Tensor = original.weight.detach()
        codes = scale = zero_point = None
        if weights is not None:
            grid = weight_grid(weight, weights)
            codes, scale, zero_point = quantize(weight, grid), grid.scale, grid.zero_point
            weight = dequantize(codes, grid).to(weight.dtype)
            if weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        # Parameters, as in the layer replaced: some models ask `next(module.parameters()).dtype` of it.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = original.bias
        if kind != "linear":
            self.stride, self.padding = original.stride, original.padding
            self.dilation, self.groups = original.dilation, original.groups
            self.padding_mode, self.padding_by_side = original.padding_mode, original._reversed_padding_repeated_twice

    def forward(self, input: Tensor) -> Tensor:  # motion modules pass `input` by name
        x = input if self.quantize_input is None else self.quantize_input(input)
        if self.kind == "linear":
            return F.linear(x, self.weight, self.bias)
        convolve = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}[self.kind]
        padding = self.padding
        if self.padding_mode != "zeros":  # as torch does it: by hand, and before
            x, padding = F.pad(x, self.padding_by_side, self.padding_mode), 0
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def weight_grid(weight: Tensor, form: WeightFormat) -> Grid:
    """One min-max grid per output channel (axis 0) of a weight [out, in, ...]."""
    axes = tuple(range(1, weight.dim()))
    low, high = weight.amin(axes, keepdim=True), weight.amax(axes, keepdim=True)
    return make_grid(low.float(), high.float(), form.bits, form.symmetric)
