"""Uniform quantization: real numbers on an evenly spaced grid of 2^bits codes.

    code = clamp(round(x / scale) + zero_point, code_min, code_max)
    x'   = (code - zero_point) * scale

Rounding is to nearest, ties to even, as torch and every integer engine here do it. Codes are signed
(-2^(bits-1) .. 2^(bits-1)-1) so that eight bits fit an int8. Ranges always include zero, which makes
zero exact: padding and ReLU zeros cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """One or many uniform grids.

    Attributes:
        scale: distance between neighbouring values; any shape that broadcasts against the tensor.
        zero_point: code of the value zero, integers in the shape of `scale`.
        code_min, code_max: the ends of the code range.
    """

    scale: Tensor
    zero_point: Tensor
    code_min: int
    code_max: int


def affine_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """The grid whose ends are `low` and `high` (both widened to include zero), with a zero point.

    A range of zero width, such as that of a constant-zero channel, gets scale 1 and represents zero.
    So does one too narrow for 1 / scale to be finite.
    """
    code_min, code_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (code_max - code_min)
    scale = torch.where(torch.isfinite(scale.reciprocal()), scale, torch.ones_like(scale))
    zero_point = (code_min - torch.round(low / scale)).clamp(code_min, code_max)
    return Grid(scale, zero_point.to(torch.int32), code_min, code_max)


def symmetric_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """The grid centred on zero that reaches the larger of |low| and |high|.

    The lowest code is left unused (restricted range), so that codes negate exactly: at 2 bits the
    levels are -scale, 0 and scale.
    """
    code_max = 2 ** (bits - 1) - 1
    scale = torch.maximum(low.abs(), high.abs()) / code_max
    scale = torch.where(torch.isfinite(scale.reciprocal()), scale, torch.ones_like(scale))
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), -code_max, code_max)


def make_grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Grid:
    """`symmetric_grid` or `affine_grid` over the range [low, high]."""
    return (symmetric_grid if symmetric else affine_grid)(low, high, bits)


def quantize(x: Tensor, grid: Grid) -> Tensor:
    """Codes of `x` on `grid`: int8 where they fit, int32 otherwise."""
    codes = torch.round(x * grid.scale.reciprocal()) + grid.zero_point
    fits = grid.code_min >= -128 and grid.code_max <= 127
    return codes.clamp(grid.code_min, grid.code_max).to(torch.int8 if fits else torch.int32)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """The real numbers `codes` stand for, in the dtype of the scale."""
    return (codes - grid.zero_point) * grid.scale


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """`dequantize(quantize(x))` in the dtype of `x`; NaN stays NaN.

    Computed in fp32 whatever `x` is: bf16 cannot tell codes beyond 256 apart. A few passes over one buffer
    are some fifteen times faster on a CPU than torch.fake_quantize_per_tensor_affine, which does not vectorize.
    """
    values = (x.to(grid.scale.dtype) * grid.scale.reciprocal()).round_()
    if grid.zero_point.numel() == 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # A zero point known as a number moves the limits instead of every value, there and back.
        zero = int(grid.zero_point)
        return values.clamp_(grid.code_min - zero, grid.code_max - zero).mul_(grid.scale).to(x.dtype)
    zero_point = grid.zero_point.to(grid.scale.dtype)
    return values.add_(zero_point).clamp_(grid.code_min, grid.code_max).sub_(zero_point).mul_(grid.scale).to(x.dtype)
