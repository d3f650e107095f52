"""The quantized Linear and convolution, simulated: integer codes, computed with in floating point.

A layer holds its weights as integer codes, packed without gaps, with one grid per output channel. The real
numbers these stand for are either kept ready, which is how a layer is built, or, after `keep_packed`, made
anew in every call. Its inputs are put on their grid as they arrive (see `inputs`). Products and sums are then
those of the integer computation up to floating-point rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.errors import ModelError
from qvd_core.formats import WEIGHT_BITS, WeightFormat
from qvd_core.layers.description import Description, Place, read_fields
from qvd_core.layers.exact import ExactBuffers
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.packing import pack, packed_size, unpack
from qvd_core.quantizers.uniform import Grid, make_grid, quantize


class QuantizedLayer(ExactBuffers):
    """A Linear or convolution of a variant. Shapes and meaning of the output are the original layer's.

    Its state is what a checkpoint holds: `packed`, `scales`, `zero_points` (or `weight`, if that stays in
    floating point), `bias`, `input_shift`, `input_scale` and that of `quantize_input`.

    Args:
        original: the layer it stands for.
        kind: "linear", "conv1d", "conv2d" or "conv3d".
        weights: their format; None keeps them in floating point.
        quantize_input: what puts the input on its grid; None keeps it in floating point.
        transform: of the input's channels, undone in the weights; made by the preceding norm, unless
        transform_here: the layer itself transforms its input, zero padding included.
        split: weights of the first `split` input channels get grids of their own.

    Attributes:
        weights: their format, as given; weight_shape: [out, in / groups, ...].
        packed: uint8 [N], the codes without gaps; None if the weights stay in floating point.
        scales: fp32 [out, 1, ...], one per output channel, or [out, 2, ...] if they are split.
        zero_points: int8, in the shape of `scales`; None if they are all zero, as symmetric ones are.
        weight: what the layer multiplies with: a parameter if it stays in floating point, else dequantized
            from the codes.
        bias: the original layer's own tensor, or a new one with the shift of its input.
        dtype_holder: an empty parameter of a quantized layer without a bias, as some models ask
            `next(module.parameters()).dtype` of it.
    """

    exact = ("scales",)
    packed: Tensor | None
    scales: Tensor | None
    zero_points: Tensor | None
    input_shift: Tensor | None
    input_scale: Tensor | None
    weight: Tensor
    bias: nn.Parameter | None
    dtype_holder: nn.Parameter | None

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
        self.kind, self.weights, self.split = kind, weights, split
        self.quantize_input = quantize_input
        weight, bias = original.weight.detach(), original.bias
        if transform is not None:
            weight, moved = transform.fold(weight, None if bias is None else bias.detach())
            if moved is not None and (bias is None or moved is not bias):
                bias = nn.Parameter(moved, requires_grad=False)
        self.bias, self.weight_shape = bias, tuple(weight.shape)
        packed = scales = zero_points = None
        if weights is not None:
            grid = weight_grid(weight, weights, split)
            packed = pack(quantize(weight, spread(grid, weight.shape[1], split)), weights.bits)
            scales, zero_points = grid.scale, None if weights.symmetric else grid.zero_point.to(torch.int8)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("zero_points", zero_points)
        shift = divisor = None
        if transform is not None and transform_here:
            shape = self._per_input_channel
            shift = transform.shift.to(weight).view(shape) if transform.shift.any() else None
            divisor = transform.scale.to(weight).view(shape)
        self.register_buffer("input_shift", shift)
        self.register_buffer("input_scale", divisor)
        if weights is None:
            self.weight = nn.Parameter(weight, requires_grad=False)
        else:
            self._hold_dtype(weight.dtype)
            self.keep_dequantized()
        if kind != "linear":
            self.stride, self.padding = original.stride, original.padding
            self.dilation, self.groups = original.dilation, original.groups
            self.padding_mode, self.padding_by_side = original.padding_mode, original._reversed_padding_repeated_twice

    @property
    def codes(self) -> Tensor | None:
        """Integer weights in the original shape, int8, unpacked now; None if the weights stay in floating point."""
        if self.packed is None or self.weights is None:
            return None
        return unpack(self.packed, self.weights.bits, self.weight_shape)

    @property
    def weight_scale(self) -> Tensor | None:
        """[out, 1, ...], one scale per output channel, [out, in, ...] if they are split."""
        return None if self.scales is None else _along_inputs(self.scales, self.weight_shape[1], self.split)

    @property
    def weight_zero_point(self) -> Tensor | None:
        """int32, in the shape of `weight_scale`."""
        if self.scales is None:
            return None
        zero_points = torch.zeros_like(self.scales) if self.zero_points is None else self.zero_points
        return _along_inputs(zero_points.to(torch.int32), self.weight_shape[1], self.split)

    def keep_packed(self) -> None:
        """Drop the dequantized weights: each call makes its own and the layer takes no more than its codes."""
        if self.packed is not None and "weight" in self._buffers:
            del self.weight

    def keep_dequantized(self) -> None:
        """Have the dequantized weights ready, which is faster and takes their memory on top."""
        if self.packed is not None:
            self._buffers["weight"] = self._dequantized()
            self._non_persistent_buffers_set.add("weight")  # the state is the same either way

    def _hold_dtype(self, dtype: torch.dtype) -> None:
        if self.bias is None:
            self.dtype_holder = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """That of a quantized layer's arithmetic."""
        tensor = self.dtype_holder if self.bias is None else self.bias
        assert tensor is not None
        return tensor.dtype

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.__dict__.get("_buffers", {}).get("packed") is not None:
            return self._buffers["weight"] if name in self._buffers else self._dequantized()
        return super().__getattr__(name)

    def _dequantized(self) -> Tensor:
        codes, scale = self.codes, self.weight_scale
        assert codes is not None
        assert scale is not None
        if codes.dim() == 4:
            codes = codes.contiguous(memory_format=torch.channels_last)
        weight = codes.to(torch.float32)
        if self.zero_points is not None:
            weight -= _along_inputs(self.zero_points, self.weight_shape[1], self.split)
        return weight.mul_(scale).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = None if self.packed is None else self.dtype
        super()._apply(fn, recurse)
        kept = self._buffers.get("weight")
        if kept is not None and kept.dtype != before:
            self.keep_dequantized()  # from the codes again, not rounded twice
        return self

    @property
    def _per_input_channel(self) -> tuple[int, ...]:
        return (-1,) if self.kind == "linear" else (-1, *[1] * int(self.kind[-2]))

    def describe(self) -> Description:
        """How to rebuild it, but for `quantize_input`, which several layers may share."""
        return {
            "kind": "layer",
            "weight_bits": None if self.weights is None else self.weights.bits,
            "symmetric": None if self.weights is None else self.weights.symmetric,
            "split": self.split,
            "bias": self.bias is not None,
            "shift": self.input_shift is not None,
            "scale": self.input_scale is not None,
        }

    @classmethod
    def rebuild(cls, values: Description, place: Place, quantize_input: nn.Module | None) -> QuantizedLayer:
        """The layer that describes itself as `values`, packed, in the dtype of the original, on the meta device.

        Raises:
            ModelError: a field is missing, superfluous or out of range.
        """
        optional = {"weight_bits": (int, type(None)), "symmetric": (bool, type(None)), "split": (int, type(None))}
        values = read_fields(values, place.name, **optional, bias=bool, shift=bool, scale=bool)
        bits, split = values["weight_bits"], values["split"]
        shape = tuple(place.original.weight.shape)
        if bits is not None and (bits not in WEIGHT_BITS or values["symmetric"] is None):
            raise ModelError(f"The checkpoint describes {place.name} with {bits} bits; there are {WEIGHT_BITS}.")
        if split is not None and not split < shape[1]:
            raise ModelError(f"The checkpoint splits the {shape[1]} input channels of {place.name} at {split}.")
        layer = cls(place.original, place.kind, None, quantize_input, split=split)

        def empty(*size: int, dtype: torch.dtype = place.original.weight.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device="meta")

        layer.weight = nn.Parameter(empty(*shape), requires_grad=False)
        layer.bias = nn.Parameter(empty(shape[0]), requires_grad=False) if values["bias"] else None
        if bits is not None:
            layer.weights = WeightFormat(bits, values["symmetric"])
            del layer._parameters["weight"]
            layer._hold_dtype(place.original.weight.dtype)
            layer.packed = empty(packed_size(math.prod(shape), bits), dtype=torch.uint8)
            grids = (shape[0], 1 if split is None else 2, *[1] * (len(shape) - 2))
            layer.scales = empty(*grids, dtype=torch.float32)
            layer.zero_points = None if values["symmetric"] else empty(*grids, dtype=torch.int8)
        channels = shape[1] * getattr(place.original, "groups", 1)
        for name in ("shift", "scale"):
            if values[name]:
                setattr(layer, f"input_{name}", empty(channels).view(layer._per_input_channel))
        return layer

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
    """One min-max grid per output channel (axis 0) of a weight [out, in, ...]: scales [out, 1, ...].

    With `split`, one for each part of its input channels: scales [out, 2, ...].
    """
    if split is not None:
        grids = [weight_grid(part, form) for part in (weight[:, :split], weight[:, split:])]
        scale = torch.cat([grid.scale for grid in grids], 1)
        zero_point = torch.cat([grid.zero_point for grid in grids], 1)
        return Grid(scale, zero_point, grids[0].code_min, grids[0].code_max)
    axes = tuple(range(1, weight.dim()))
    low, high = weight.amin(axes, keepdim=True), weight.amax(axes, keepdim=True)
    return make_grid(low.float(), high.float(), form.bits, form.symmetric)


def spread(grid: Grid, channels: int, split: int | None) -> Grid:
    """The grids of `weight_grid` such that they broadcast against a weight of `channels` input channels."""
    scale, zero_point = (_along_inputs(t, channels, split) for t in (grid.scale, grid.zero_point))
    return Grid(scale, zero_point, grid.code_min, grid.code_max)


def _along_inputs(grids: Tensor, channels: int, split: int | None) -> Tensor:
    if split is None:
        return grids
    first, second = grids.split(1, 1)
    rest = grids.shape[2:]
    return torch.cat([first.expand(-1, split, *rest), second.expand(-1, channels - split, *rest)], 1)
