"""Int8 layers on a CPU, through the oneDNN kernels that ship with torch.

They multiply uint8 by int8, rescale and add the bias in one pass, with one s_x and z_x for the whole tensor, and no
z_w. What they do not take is added to their sums:

    z_w    times sum (q - z_x), the same for all output channels
    z_x    that differ between rows or frames: z_x times sum w, which at a padded border has fewer terms
    s_x    that differ between rows or frames: a factor of the finished sums

A linear layer runs as a convolution of size one: as fast here, and torch.compile can fuse around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.engines.int8_layer import Int8Layer
from qvd_core.layers.inputs import GridQuantizer
from qvd_core.quantizers.uniform import Grid

UNSIGNED = 128  # oneDNN wants unsigned inputs: code -128 is stored as 0
KERNELS = {
    "linear": "qconv2d_pointwise",
    "conv1d": "qconv1d_pointwise",
    "conv2d": "qconv2d_pointwise",
    "conv3d": "qconv3d_pointwise",
}
CONVOLVE: dict[str, Any] = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def unavailable() -> str | None:
    """Why int8 is no gain on this CPU, in words; None if it is."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if not torch.cpu._is_vnni_supported():
        return "this CPU has no VNNI instructions (AVX512-VNNI or newer), without which int8 is slower"
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
    """The integer codes of a tensor, those of simulation, offset to uint8."""

    def __init__(self, quantizer: GridQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Codes in the shape and memory format of `x`, and its grids, whose zero points are not offset."""
        grid = self.quantizer.grid_for(x)
        values = (x.to(grid.scale.dtype) * grid.scale.reciprocal()).round_()
        values = values.add_(grid.zero_point + UNSIGNED).clamp_(grid.code_min + UNSIGNED, grid.code_max + UNSIGNED)
        return values.to(torch.uint8), grid


class Layer(Int8Layer):
    """An int8 layer on oneDNN.

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
        if self.kind == "linear":
            weights = weights[:, :, None, None]
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
        return (-1,) if self.kind == "linear" else (-1, *[1] * len(self.stride))

    def multiply(self, x: Tensor) -> Tensor:
        if self.kind != "linear" and x.dim() in CHANNELS_LAST:
            x = x.contiguous(memory_format=CHANNELS_LAST[x.dim()])
        codes, grid = self.codes(x)
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
        """scale * s_w sum (codes - zero_point) w + bias, on the last axis for linear layers, on axis 1 for others."""
        # Where something is still to be taken off, 16 bits would lose it.
        finished = self.one_grid is not None and self.zero_point is None
        rows = codes.shape[:-1]
        if self.kind == "linear":
            codes = codes.reshape(1, -1, 1, codes.shape[-1]).permute(0, 3, 1, 2)
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
        return out.permute(0, 2, 3, 1).reshape(*rows, out.shape[1]) if self.kind == "linear" else out

    def _sums_at(self, x: Tensor) -> Tensor:
        """s_w sum w at every position of the output for an input like `x`: near a padded border, of fewer terms."""
        if self.kind == "linear" or not any(self.padding):
            return self.sums.flatten(1).sum(1).view(self._per_channel)
        inside = torch.ones(1, 1, *x.shape[2:])
        return CONVOLVE[self.kind](inside, self.sums, None, self.stride, self.padding, self.dilation)

    def _sums_of(self, codes: Tensor, zero_point: Any) -> Tensor:
        """sum (q - z_x) at every position of the output, one for all its channels."""
        axis = -1 if self.kind == "linear" else 1
        sums = codes.sum(axis, keepdim=True, dtype=torch.float32) - codes.shape[axis] * (zero_point + UNSIGNED)
        window = self.sums.shape[2:]
        if self.kind == "linear" or (max(window) == 1 and set(self.stride) == {1} and not any(self.padding)):
            return sums
        return CONVOLVE[self.kind](sums, torch.ones(1, 1, *window), None, self.stride, self.padding, self.dilation)
