"""Quantized layers in int8 arithmetic on a CPU, through the oneDNN kernels that ship with torch.

The codes of simulation are multiplied as integers. With x' = s_x (q - z_x) and w' = s_w (w - z_w),

    y = s_x s_w sum (q - z_x) (w - z_w) + bias

where the sum runs over input channels and the kernel's window, and padding contributes nothing. oneDNN multiplies
uint8 by int8 and rescales, adding the bias, in one pass. It takes one s_x and z_x for the whole tensor, and no
z_w. What it does not take is added to its sums:

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

from qvd_core.layers.inputs import GridQuantizer
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.quantizers.packing import pack, unpack
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


def has_kernels() -> bool:
    """Whether this CPU multiplies int8 faster than floating point (AVX512-VNNI or newer)."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


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


class Int8Layer(nn.Module):
    """A Linear or convolution whose products and sums are integers.

    Args:
        layer: the quantized layer it computes.
        codes: `Codes` of its input, or what shares them among several readers.
        quantizer: what these codes come from.
        channels: the input channels it reads of those `layer` has.
        biased: whether it adds the bias.
        keep_packed: hold weights in their own bits, and unpack them at every call.
    """

    weight: nn.Parameter
    bias: Tensor | None
    scale: Tensor
    sums: Tensor
    zero_point: Tensor | None
    stored: Tensor | None
    input_shift: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        layer: QuantizedLayer,
        codes: nn.Module,
        quantizer: GridQuantizer,
        *,
        channels: slice = slice(None),
        biased: bool = True,
        keep_packed: bool = False,
    ):
        super().__init__()
        assert layer.codes is not None
        assert layer.weight_scale is not None
        assert layer.weight_zero_point is not None
        self.kind, self.codes = layer.kind, codes
        # As numbers, which the kernel takes faster than tensors, and torch.compile takes at all.
        self.one_grid = (float(quantizer.scale), int(quantizer.zero_point)) if quantizer.one_grid else None
        self.one_zero_point = quantizer.one_grid or quantizer.symmetric
        self.weight = nn.Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)  # for its dtype
        for name in ("input_shift", "input_scale"):
            value = getattr(layer, name)
            self.register_buffer(name, None if value is None else value[channels])
        weights = layer.codes[:, channels]
        # All input channels of a part are on one grid.
        scale, zero_point = (t[:, channels][:, :1].flatten() for t in (layer.weight_scale, layer.weight_zero_point))
        self._read_geometry(layer)
        if self.kind == "linear":
            weights = weights[:, :, None, None]
        bias = layer.bias.detach().float() if biased and layer.bias is not None else None
        self.register_buffer("zero_point", (scale * zero_point).view(self._per_channel) if zero_point.any() else None)
        self.register_buffer("bias", bias)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("no_zero_point", torch.zeros_like(scale, dtype=torch.int32))
        sums = weights.sum(1, keepdim=True, dtype=torch.float32) * scale.view(-1, *[1] * (weights.dim() - 1))
        self.register_buffer("sums", sums)
        self.shape, self.bits = tuple(weights.shape), 8
        self.register_buffer("stored", None)
        if keep_packed:
            largest = max(int(weights.max()), -int(weights.min()) - 1, 1)
            self.bits = largest.bit_length() + 1
            self.stored = pack(weights, self.bits)
        else:
            self.prepared = self._prepare(weights)

    def _read_geometry(self, layer: QuantizedLayer) -> None:
        if layer.kind == "linear":
            self.stride, self.padding, self.dilation, self.groups = [1, 1], [0, 0], [1, 1], 1
            self.pad_first = False
            return
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        sides = layer.padding_by_side
        # By hand where torch does so too, and where the padding of a shifted channel is no zero.
        self.pad_first = layer.padding_mode != "zeros" or layer.input_shift is not None or sides[::2] != sides[1::2]
        self.padding = [0] * len(self.stride) if self.pad_first else list(sides[::-2])
        self.pad_mode, self.pad_sides = "constant" if layer.padding_mode == "zeros" else layer.padding_mode, sides

    def _prepare(self, weights: Tensor) -> Tensor:
        """`weights` in the order oneDNN's kernel wants."""
        offset = UNSIGNED if self.one_zero_point else 0
        prepared: Tensor = torch.ops.onednn.qconv_prepack(
            weights.contiguous(), self.scale, 1.0, offset, self.stride, self.padding, self.dilation, self.groups
        )
        return prepared

    def forward(self, input: Tensor) -> Tensor:  # motion modules pass `input` by name
        x = input
        if self.pad_first:
            x = F.pad(x, self.pad_sides, self.pad_mode)
        if self.input_shift is not None:
            x = x - self.input_shift
        if self.input_scale is not None:
            x = x / self.input_scale
        if self.kind != "linear" and x.dim() in CHANNELS_LAST:
            x = x.contiguous(memory_format=CHANNELS_LAST[x.dim()])
        codes, grid = self.codes(x)
        if self.one_grid is not None:
            scale, zero_point = self.one_grid
            out = self._multiply(codes, scale, zero_point + UNSIGNED, self.bias)
            if self.zero_point is not None:
                out = out - self._sums_of(codes, zero_point) * (scale * self.zero_point)
            return out.to(self.weight.dtype)
        if self.one_zero_point:
            out = self._multiply(codes, 1.0, UNSIGNED)
        else:
            out = self._multiply(codes, 1.0, 0)
            out = out - (grid.zero_point + UNSIGNED) * self._sums_at(x)
        if self.zero_point is not None:
            out = out - self._sums_of(codes, grid.zero_point) * self.zero_point
        out = out * grid.scale
        return (out if self.bias is None else out + self.bias.view(self._per_channel)).to(self.weight.dtype)

    @property
    def _per_channel(self) -> tuple[int, ...]:
        return (-1,) if self.kind == "linear" else (-1, *[1] * len(self.stride))

    def _multiply(self, codes: Tensor, scale: float, zero_point: int, bias: Tensor | None = None) -> Tensor:
        """scale * sum (codes - zero_point) w + bias, on the last axis for linear layers, on axis 1 for others."""
        prepared = self.prepared if self.stored is None else self._prepare(unpack(self.stored, self.bits, self.shape))
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
            prepared,
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
        """sum w at every position of the output for an input like `x`: near a padded border, of fewer terms."""
        if self.kind == "linear" or not any(self.padding):
            return self.sums.flatten(1).sum(1).view(self._per_channel)
        inside = torch.ones(1, 1, *x.shape[2:])
        return CONVOLVE[self.kind](inside, self.sums, None, self.stride, self.padding, self.dilation)

    def _sums_of(self, codes: Tensor, zero_point: Any) -> Tensor:
        """sum (q - z_x) at every position of the output, one for all its channels."""
        if self.kind == "linear":
            return codes.sum(-1, keepdim=True, dtype=torch.float32) - codes.shape[-1] * (zero_point + UNSIGNED)
        sums = codes.sum(1, keepdim=True, dtype=torch.float32) - codes.shape[1] * (zero_point + UNSIGNED)
        window = self.sums.shape[2:]
        if max(window) == 1 and set(self.stride) == {1}:
            return sums
        return CONVOLVE[self.kind](sums, torch.ones(1, 1, *window), None, self.stride, self.padding, self.dilation)


class SplitLayer(nn.Module):
    """A convolution whose leading input channels are on other grids than the rest: the sum of two."""

    def __init__(self, first: Int8Layer, rest: Int8Layer, split: int):
        super().__init__()
        self.first, self.rest, self.split = first, rest, split

    def forward(self, input: Tensor) -> Tensor:
        return self.first(input[:, : self.split]) + self.rest(input[:, self.split :])
