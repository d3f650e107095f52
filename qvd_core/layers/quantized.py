"""The quantized Linear and convolution, simulated: integer codes, computed with in floating point.

A layer holds its weights as integer codes with one grid per output channel, and the real numbers these
codes stand for, dequantized once. Its inputs are put on their grid as they arrive (see `inputs`). Products
and sums are then those of the integer computation up to floating-point rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.formats import WeightFormat
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import Grid, dequantize, make_grid, quantize


class QuantizedLayer(nn.Module):
    """A Linear or convolution of a variant. Shapes and meaning of the output are the original layer's.

    Args:
        original: the layer it stands for.
        kind: "linear", "conv1d", "conv2d" or "conv3d".
        weights: their format; None keeps them in floating point.
        quantize_input: what puts the input on its grid; None keeps it in floating point.
        transform: of the input's channels, undone in the weights; made by the preceding norm, unless
        transform_here: the layer itself transforms its input, zero padding included.
        split: weights of the first `split` input channels get grids of their own.

    Attributes:
        codes: integer weights in the original shape, int8; None if the weights stay in floating point.
        weight_scale: [out, 1, ...], one scale per output channel, [out, in, ...] if they are split.
        weight: what the layer multiplies with, dequantized from the codes.
        bias: the original layer's own tensor, or a new one with the shift of its input.
    """

    codes: Tensor | None
    weight_scale: Tensor | None
    weight_zero_point: Tensor | None
    input_shift: Tensor | None
    input_scale: Tensor | None
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        original: Any,
        kind: str,
        weights: WeightFormat | None,
        quantize_input: nn.Module | None,
        transform: ChannelTransform | None = None,
        transform_here: bool = False,
        split: int | None = None,
    ):
        super().__init__()
        self.kind = kind
        self.quantize_input = quantize_input
        weight, bias = original.weight.detach(), original.bias
        if transform is not None:
            weight, moved = transform.fold(weight, None if bias is None else bias.detach())
            if moved is not None and (bias is None or moved is not bias):
                bias = nn.Parameter(moved, requires_grad=False)
        codes = scale = zero_point = None
        if weights is not None:
            grid = weight_grid(weight, weights, split)
            codes, scale, zero_point = quantize(weight, grid), grid.scale, grid.zero_point
            weight = dequantize(codes, grid).to(weight.dtype)
            if weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", zero_point)
        shift = divisor = None
        if transform is not None and transform_here:
            shape = (-1,) if kind == "linear" else (-1, *[1] * int(kind[-2]))
            shift = transform.shift.to(weight).view(shape) if transform.shift.any() else None
            divisor = transform.scale.to(weight).view(shape)
        self.register_buffer("input_shift", shift)
        self.register_buffer("input_scale", divisor)
        # Parameters, as in the layer replaced: some models ask `next(module.parameters()).dtype` of it.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        if kind != "linear":
            self.stride, self.padding = original.stride, original.padding
            self.dilation, self.groups = original.dilation, original.groups
            self.padding_mode, self.padding_by_side = original.padding_mode, original._reversed_padding_repeated_twice

    def forward(self, input: Tensor) -> Tensor:  # motion modules pass `input` by name
        x = input
        padding = 0 if self.kind == "linear" else self.padding
        if self.kind != "linear" and (self.padding_mode != "zeros" or self.input_shift is not None):
            # By hand and first: as torch does it where the padding is no zeros, and because a shifted
            # channel's padding is no zero either.
            x = F.pad(x, self.padding_by_side, "constant" if self.padding_mode == "zeros" else self.padding_mode)
            padding = 0
        if self.input_shift is not None:
            x = x - self.input_shift
        if self.input_scale is not None:
            x = x / self.input_scale
        if self.quantize_input is not None:
            x = self.quantize_input(x)
        if self.kind == "linear":
            return F.linear(x, self.weight, self.bias)
        convolve = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}[self.kind]
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def weight_grid(weight: Tensor, form: WeightFormat, split: int | None = None) -> Grid:
    """One min-max grid per output channel (axis 0) of a weight [out, in, ...], or one for each part."""
    if split is not None:
        grids = [weight_grid(part, form) for part in (weight[:, :split], weight[:, split:])]
        sizes = torch.tensor([split, weight.shape[1] - split], device=weight.device)
        scale = torch.cat([grid.scale for grid in grids], 1).repeat_interleave(sizes, 1)
        zero_point = torch.cat([grid.zero_point for grid in grids], 1).repeat_interleave(sizes, 1)
        return Grid(scale, zero_point, grids[0].code_min, grids[0].code_max)
    axes = tuple(range(1, weight.dim()))
    low, high = weight.amin(axes, keepdim=True), weight.amax(axes, keepdim=True)
    return make_grid(low.float(), high.float(), form.bits, form.symmetric)
