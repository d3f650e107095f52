"""What int8 layers have in common on every device: how a quantized layer is read, and what precedes its product.

    x' = (q - z_x) s_x        w' = (w - z_w) s_w
    y  = s_x s_w sum (q - z_x)(w - z_w) + bias

is the layer's definition; codes q and w are those of simulation, bit for bit.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.layers.inputs import DynamicSplit, GridQuantizer, OncePerInput, StaticSplit
from qvd_core.layers.quantized import QuantizedLayer


class Int8Layer(nn.Module):
    """A Linear or convolution whose products and sums are integers. Subclasses compute them on one device.

    Args:
        layer: the quantized layer it computes, or several at once.
        codes: makes the codes of its input, possibly for several readers.
        quantizer: what these codes come from.
        channels: the input channels it reads of those `layer` has.
        biased: whether it adds the bias.

    Attributes:
        weight: empty, for models that ask their layers for the dtype of their weights.
        prepared: the weights in the kernel's own order; never changed, so copies share them.
    """

    prepared: Any
    weight: nn.Parameter
    input_shift: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        layer: QuantizedLayer | Stacked,
        codes: nn.Module,
        quantizer: GridQuantizer,
        channels: slice = slice(None),
        biased: bool = True,
    ):
        super().__init__()
        codes_of_weights = layer.codes
        assert codes_of_weights is not None
        assert layer.weight_scale is not None
        assert layer.weight_zero_point is not None
        self.kind, self.codes, self.quantizer = layer.kind, codes, quantizer
        self.weight = nn.Parameter(torch.empty(0, dtype=layer.dtype), requires_grad=False)
        for name in ("input_shift", "input_scale"):
            value = getattr(layer, name)
            self.register_buffer(name, None if value is None else value[channels])
        self.stride, self.padding, self.dilation, self.groups = [1, 1], [0, 0], [1, 1], 1
        self.pad_first = False
        if isinstance(layer, QuantizedLayer) and layer.kind != "linear":
            self._read_geometry(layer)
        weights = codes_of_weights[:, channels]
        # All input channels of a part are on one grid.
        scale, zero_point = (t[:, channels][:, :1].flatten() for t in (layer.weight_scale, layer.weight_zero_point))
        self.weight_count = weights.numel()
        bias = layer.bias.detach().float() if biased and layer.bias is not None else None
        centred = centred_codes(weights, zero_point)
        if centred is not None:
            self.keep_weights(centred, scale.clone(), None, bias)
        else:
            self.keep_weights(weights, scale.clone(), zero_point.clone(), bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Layer:
        twin = memo[id(self)] = type(self).__new__(type(self))
        memo[id(self.prepared)] = self.prepared
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _read_geometry(self, layer: QuantizedLayer) -> None:
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        sides = layer.padding_by_side
        # By hand where torch does so too, and where the padding of a shifted channel is no zero.
        self.pad_first = layer.padding_mode != "zeros" or layer.input_shift is not None or sides[::2] != sides[1::2]
        self.padding = [0] * len(self.stride) if self.pad_first else list(sides[::-2])
        self.pad_mode, self.pad_sides = "constant" if layer.padding_mode == "zeros" else layer.padding_mode, sides

    def keep_weights(self, weights: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None) -> None:
        """Fill `prepared` with int8 weights [out, in, ...]; fp32 scales [out], zero points [out] if any, bias [out]."""
        raise NotImplementedError

    def multiply(self, x: Tensor) -> Tensor:
        """The output for an input that is padded, shifted and scaled."""
        raise NotImplementedError

    def products(self, *args: Any) -> Tensor:
        """The kernel itself, on codes."""
        raise NotImplementedError

    def record_products(self, calls: list[Callable[[], Tensor]]) -> Callable[[], None]:
        """Add to `calls` what repeats every call of the kernel from now on, until the returned function is called."""
        kernel = self.products

        def recorded(*args: Any) -> Tensor:
            calls.append(functools.partial(kernel, *args))
            return kernel(*args)

        self.products = recorded  # type: ignore[method-assign]
        return lambda: self.__dict__.pop("products")

    def forward(self, input: Tensor) -> Tensor:  # motion modules pass `input` by name
        x = input
        if self.pad_first:
            x = F.pad(x, self.pad_sides, self.pad_mode)
        if self.input_shift is not None:
            x = x - self.input_shift
        if self.input_scale is not None:
            x = x / self.input_scale
        return self.multiply(x)


def centred_codes(codes: Tensor, zero_point: Tensor) -> Tensor | None:
    """w - z_w as int8, so that no zero points are left: always for at most 7 bits; None where it does not fit.

    Args:
        codes: int8 [out, in, ...].
        zero_point: one per output channel, or one per weight.
    """
    shape = (-1, *[1] * (codes.dim() - 1)) if zero_point.dim() == 1 else zero_point.shape
    centred = codes.to(torch.int16) - zero_point.view(shape).to(torch.int16)
    narrow = centred.to(torch.int8)
    return narrow if bool((centred == narrow).all()) else None


class SplitLayer(nn.Module):
    """A convolution whose leading input channels are on other grids than the rest: the sum of two."""

    def __init__(self, first: Int8Layer, rest: Int8Layer, split: int):
        super().__init__()
        self.first, self.rest, self.split = first, rest, split

    @property
    def weight(self) -> nn.Parameter:
        """Empty, as that of its parts."""
        return self.first.weight

    def forward(self, input: Tensor) -> Tensor:
        return self.first(input[:, : self.split]) + self.rest(input[:, self.split :])


class Stacked:
    """Linear layers that read the same codes, as one layer with all their outputs: those of a `QuantizedLayer`."""

    kind = "linear"
    input_shift = input_scale = None

    def __init__(self, layers: Sequence[QuantizedLayer]):
        self.dtype = layers[0].dtype
        self.codes = _joined([layer.codes for layer in layers])
        self.weight_scale = _joined([layer.weight_scale for layer in layers])
        self.weight_zero_point = _joined([layer.weight_zero_point for layer in layers])
        rows = [layer.weight_shape[0] for layer in layers]
        no_bias = self.weight_scale.new_zeros(max(rows))
        biases = [no_bias[:n] if layer.bias is None else layer.bias for n, layer in zip(rows, layers, strict=True)]
        self.bias = None if all(layer.bias is None for layer in layers) else _joined(biases)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor:
    there = [tensor for tensor in tensors if tensor is not None]
    assert len(there) == len(tensors)
    return torch.cat(there)


class Part(nn.Module):
    """One of several layers whose outputs are one product, made for the first that is called."""

    def __init__(self, together: OncePerInput, rows: slice):
        super().__init__()
        self.together, self.rows = together, rows

    @property
    def weight(self) -> nn.Parameter:
        """Empty, as that of the whole."""
        weight: nn.Parameter = self.together.quantizer.weight
        return weight

    def forward(self, input: Tensor) -> Tensor:  # motion modules pass `input` by name
        outputs: Tensor = self.together(input)
        return outputs[..., self.rows]


def int8_parts(engine: Any, layers: Sequence[QuantizedLayer], quantizer: GridQuantizer) -> list[nn.Module]:
    """Int8 layers for linear ones that read the same tensor, on the same grid, and do not transform it."""
    whole = engine.new_layer(Stacked(layers), engine.Codes(quantizer), quantizer)
    together, start = OncePerInput(whole, len(layers)), 0
    parts: list[nn.Module] = []
    for layer in layers:
        stop = start + layer.weight_shape[0]
        parts.append(Part(together, slice(start, stop)))
        start = stop
    return parts


class PackedLayer(nn.Module):
    """An int8 layer that keeps its weights packed, and lays them out for the kernel anew in every call.

    Args:
        engine, quantizer, codes: see `int8_layer`.
        layer: the quantized layer it computes, whose packed codes are the only weights there are.
    """

    def __init__(self, engine: Any, layer: QuantizedLayer, quantizer: nn.Module, codes: nn.Module | None):
        super().__init__()
        layer.keep_packed()
        self.engine, self.layer, self.quantizer, self.codes = engine, layer, quantizer, codes
        self.weight = nn.Parameter(torch.empty(0, dtype=layer.dtype), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return int8_layer(self.engine, self.layer, self.quantizer, self.codes)(input)


def int8_layer(engine: Any, layer: QuantizedLayer, quantizer: nn.Module, codes: nn.Module | None = None) -> nn.Module:
    """The int8 layer that computes `layer`.

    Args:
        engine: the module of a device, with its `Codes` and `new_layer`.
        quantizer: of the layer's own input.
        codes: what makes its codes, if that is shared with other layers.
    """
    if not isinstance(quantizer, (StaticSplit, DynamicSplit)):
        whole: nn.Module = engine.new_layer(layer, codes or engine.Codes(quantizer), quantizer)
        return whole
    parts = [slice(quantizer.split), slice(quantizer.split, None)]
    first, rest = (
        engine.new_layer(layer, engine.Codes(own), own, channels=part, biased=not number)
        for number, (part, own) in enumerate(zip(parts, quantizer.parts(), strict=True))
    )
    return SplitLayer(first, rest, quantizer.split)
