"""Int8 layers on CUDA: the arithmetic of `cuda_int8`, held in modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvd_core.engines import cuda_int8
from qvd_core.engines.int8_layer import Int8Layer
from qvd_core.layers.inputs import DynamicPerToken, GridQuantizer

unavailable = cuda_int8.unavailable


def takes(kind: str, groups: int, products: int, zero_points: bool) -> str | None:
    """Why a layer cannot be computed in int8 here, in words; None if it can."""
    return cuda_int8.takes(kind, groups, products)


class Codes(nn.Module):
    """The integer codes of a tensor, those of simulation, in one pass."""

    def __init__(self, quantizer: GridQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """int8 codes in the shape of `x`, scales, and zero points unless all are 0."""
        if isinstance(self.quantizer, DynamicPerToken):
            form = self.quantizer.form
            return cuda_int8.quantize_dynamic(x, form.bits, form.symmetric, self.quantizer.layer_kind)
        grid = self.quantizer.grid_for(x)
        scale, zero_point = grid.scale.flatten(), None if self.quantizer.symmetric else grid.zero_point.flatten()
        return cuda_int8.quantize_static(x, scale, zero_point, grid.code_min, grid.code_max), scale, zero_point


class Layer(Int8Layer):
    """An int8 layer on Triton's kernels."""

    def keep_weights(self, weights: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None) -> None:
        integers = None if zero_point is None else zero_point.to(torch.int32)
        self.prepared = cuda_int8.pack(weights, scale, integers, bias)

    def multiply(self, x: Tensor) -> Tensor:
        return self.products(*self.codes(x))

    def products(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        dtype = self.weight.dtype
        if self.kind == "linear":
            return cuda_int8.linear(codes, scale, zero_point, self.prepared, dtype)
        return cuda_int8.convolve(
            codes, scale, zero_point, self.prepared, dtype, self.stride, self.padding, self.dilation
        )


new_layer = Layer
