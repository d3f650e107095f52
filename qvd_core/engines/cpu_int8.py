"""Int8 layers on a CPU, through the oneDNN kernels that ship with torch.

Linear layers and convolutions of size one are products of matrices, int8 by int8 into int32. What is missing from
their sums is taken off in int32 too, where it is exact:

    sum (q - z_x)(w - z_w) = sum q w - z_x sum w - z_w sum (q - z_x)

so rows and frames may have grids of their own. Only then come the scales and the bias, in one pass, which
torch.compile fuses with what follows.

Other convolutions multiply uint8 by int8, rescale and add the bias in one kernel, with one s_x and z_x for the whole
tensor, and no z_w. What it does not take is added to its sums:

    z_w    times sum (q - z_x), the same for all output channels
    z_x    that differ between samples: z_x times sum w, which at a padded border has fewer terms
    s_x    that differ between samples: a factor of the finished sums

The kernel for convolutions could do linear layers as well, but lays out its weights anew in every call unless it
knew the size of the input when they were packed: up to eight times slower for few rows and many weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.engines.int8_layer import Int8Layer, Stacked
from qvd_core.layers.inputs import GridQuantizer
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.quantizers.uniform import Grid

UNSIGNED = 128  # oneDNN's convolutions want unsigned inputs: code -128 is 0
KERNELS = {"conv1d": "qconv1d_pointwise", "conv2d": "qconv2d_pointwise", "conv3d": "qconv3d_pointwise"}
CONVOLVE: dict[str, Any] = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def unavailable() -> str | None:
    """Why this CPU should not compute in int8, in words; None if it should.

    Without VNNI, oneDNN's convolutions add pairs of products in 16 bits, which overflow: 9 % off on random codes.
    """
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if not torch.cpu._is_vnni_supported():
        return "this CPU has no VNNI instructions (AVX512-VNNI or newer); without, int8 is slower and its sums overflow"
    return None


def takes(kind: str, groups: int, products: int, zero_points: bool) -> str | None:
    """Why a layer cannot be computed in int8 here, in words; None if it can.

    Args:
        products: summed for one output.
        zero_points: whether its weights have any that their codes cannot take in.
    """
    if groups > 1 and zero_points:
        return "a grouped convolution whose weights have zero points"
    if products > 2**15:
        return f"sums of {products} products could overflow int32"
    return None


class Codes(nn.Module):
    """The integer codes of a tensor, those of simulation."""

    def __init__(self, quantizer: GridQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """int8 codes in the shape and memory format of `x`, and its grids."""
        grid = self.quantizer.grid_for(x)
        values = (x.to(grid.scale.dtype) * grid.scale.reciprocal()).round_()
        return values.add_(grid.zero_point).clamp_(grid.code_min, grid.code_max).to(torch.int8), grid


def new_layer(layer: QuantizedLayer | Stacked, *args: Any, **kwargs: Any) -> Int8Layer:
    """The int8 layer that computes `layer`; arguments as those of `Int8Layer`."""
    return (MatrixProduct if _is_matrix_product(layer) else Convolution)(layer, *args, **kwargs)


def _is_matrix_product(layer: Any) -> bool:
    if layer.kind == "linear":
        return True
    once = max(layer.weight_shape[2:]) == 1 and set(layer.stride) == {1} and layer.groups == 1
    return once and not any(layer.padding_by_side)


class MatrixProduct(Int8Layer):
    """A linear layer, or a convolution that looks at one position at a time.

    Attributes:
        prepared: int8 [out, in].
        sums: int32 [out], sum of weights over input channels, times z_x where that is a single number.
        scale: fp32 [out], times s_x where that is a single number.
        zero_point: int32 [out], or None.
        bias: fp32 [out], or None.
    """

    sums: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None

    def keep_weights(self, weights: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None) -> None:
        self.register_buffer("prepared", weights.flatten(1).contiguous(), persistent=False)
        sums = self.prepared.sum(1, dtype=torch.int32)
        one = self.one_grid = self.quantizer.one_grid
        self.register_buffer("sums", self.quantizer.zero_point * sums if one else sums)
        self.register_buffer("scale", self.quantizer.scale * scale if one else scale)
        self.register_buffer("zero_point", None if zero_point is None else zero_point.to(torch.int32))
        self.register_buffer("bias", bias)

    def multiply(self, x: Tensor) -> Tensor:
        codes, grid = self.codes(x)
        scale, zero_point = grid.scale, grid.zero_point
        if self.kind != "linear":  # channels last, as in memory already if x is so
            codes = codes.movedim(1, -1)
            scale, zero_point = (t.movedim(1, -1) if t.dim() > 1 else t for t in (scale, zero_point))
        *rows, channels = codes.shape
        sums = self.products(codes.reshape(math.prod(rows), channels)).view(*rows, len(self.scale))
        if not self.quantizer.symmetric:
            sums -= self.sums if self.one_grid else zero_point * self.sums
        if self.zero_point is not None:
            sums -= (codes.sum(-1, keepdim=True, dtype=torch.int32) - channels * zero_point) * self.zero_point
        factor = self.scale if self.one_grid else scale * self.scale
        out = sums * factor if self.bias is None else torch.addcmul(self.bias, sums, factor)
        out = out.to(self.weight.dtype)
        return out if self.kind == "linear" else out.movedim(-1, 1)

    def products(self, codes: Tensor) -> Tensor:
        """int32 [rows, out], sum q w, of codes [rows, in]."""
        return torch._int_mm(codes, self.prepared.t())


class Convolution(Int8Layer):
    """Any other convolution.

    Attributes:
        scale: fp32 [out].
        zero_point: fp32 s_w z_w per output channel, or None.
        sums: fp32 [out, 1, ...], s_w times the weights' sum over input channels.
        bias: fp32 [out], or None.
    """

    scale: Tensor
    sums: Tensor
    bias: Tensor | None
    zero_point: Tensor | None

    def keep_weights(self, weights: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None) -> None:
        # As numbers, which the kernel takes faster than tensors, and torch.compile takes at all.
        one = self.quantizer.one_grid
        self.one_grid = (float(self.quantizer.scale), int(self.quantizer.zero_point)) if one else None
        self.one_zero_point = one or self.quantizer.symmetric
        self.register_buffer("scale", scale)
        self.register_buffer("no_zero_point", torch.zeros_like(scale, dtype=torch.int32))
        self.register_buffer("bias", bias)
        corrections = None if zero_point is None else (scale * zero_point).view(self._per_channel)
        self.register_buffer("zero_point", corrections)
        sums = weights.sum(1, keepdim=True, dtype=torch.float32) * scale.view(-1, *[1] * (weights.dim() - 1))
        self.register_buffer("sums", sums)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        offset = UNSIGNED if self.one_zero_point else 0
        self.prepared = torch.ops.onednn.qconv_prepack(weights.contiguous(), scale, 1.0, offset, *geometry)

    @property
    def _per_channel(self) -> tuple[int, ...]:
        return (-1, *[1] * len(self.stride))

    def multiply(self, x: Tensor) -> Tensor:
        signed, grid = self.codes(x)
        codes = signed.view(torch.uint8) ^ UNSIGNED  # code + 128
        if codes.dim() in CHANNELS_LAST:
            codes = codes.contiguous(memory_format=CHANNELS_LAST[codes.dim()])
        if self.one_grid is not None:
            scale, zero_point = self.one_grid
            out = self.products(codes, scale, zero_point + UNSIGNED, self.bias)
            if self.zero_point is not None:
                out = out - self._sums_of(codes, zero_point) * (scale * self.zero_point)
            return out.to(self.weight.dtype)
        if self.one_zero_point:
            out = self.products(codes, 1.0, UNSIGNED)
        else:
            out = self.products(codes, 1.0, 0)
            out = out - (grid.zero_point + UNSIGNED) * self._sums_at(x)
        if self.zero_point is not None:
            out = out - self._sums_of(codes, grid.zero_point) * self.zero_point
        out = out * grid.scale
        return (out if self.bias is None else out + self.bias.view(self._per_channel)).to(self.weight.dtype)

    def products(self, codes: Tensor, scale: float, zero_point: int, bias: Tensor | None = None) -> Tensor:
        """scale * s_w sum (codes - zero_point) w + bias."""
        # Where something is still to be taken off, 16 bits would lose it.
        finished = self.one_grid is not None and self.zero_point is None
        kernel: Any = getattr(torch.ops.onednn, KERNELS[self.kind])
        out: Tensor = kernel(
            codes,
            scale,
            zero_point,
            self.prepared,
            self.scale,
            self.no_zero_point,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            1.0,
            0,
            self.weight.dtype if finished else torch.float32,
            "none",
            [],
            None,
        )
        return out

    def _sums_at(self, x: Tensor) -> Tensor:
        """s_w sum w at every position of the output for an input like `x`: near a padded border, of fewer terms."""
        if not any(self.padding):
            return self.sums.flatten(1).sum(1).view(self._per_channel)
        inside = torch.ones(1, 1, *x.shape[2:])
        return CONVOLVE[self.kind](inside, self.sums, None, self.stride, self.padding, self.dilation)

    def _sums_of(self, codes: Tensor, zero_point: Any) -> Tensor:
        """sum (q - z_x) at every position of the output, one for all its channels."""
        sums = codes.sum(1, keepdim=True, dtype=torch.float32) - codes.shape[1] * (zero_point + UNSIGNED)
        window = torch.ones(1, 1, *self.sums.shape[2:])
        return CONVOLVE[self.kind](sums, window, None, self.stride, self.padding, self.dilation)
