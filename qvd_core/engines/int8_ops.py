"""The kernels of `int8_kernels` as torch operators, so that torch.compile can see past them.

Shapes and dtypes are checked by the callers in `cuda_int8`. Opaque operators rather than `triton_op`, whose kernels
a compiler inlines: nothing could be fused into them, and the interpreter the tests run them in cannot be
inlined. Schemas are spelled out because operators defined that way cost half the time per call.

Triton is imported when the first operator runs, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from qvd_core.errors import GenerationError

_ELEMENTS = 4096  # of an input, for one program
_MOST_PARTS = 64  # of a sample whose range is searched

_GRIDS = "int code_min, int code_max, bool symmetric"
_FACTORS = (
    "Tensor codes, Tensor scale, Tensor? zero_point, "
    "Tensor weights, Tensor weight_scale, Tensor? weight_zero_point, Tensor weight_sums, Tensor? bias"
)
torch.library.define(
    "qvd::int8_quantize", "(Tensor x, Tensor scale, Tensor? zero_point, int code_min, int code_max) -> Tensor"
)
torch.library.define("qvd::int8_quantize_rows", f"(Tensor x, {_GRIDS}) -> (Tensor, Tensor, Tensor)")
torch.library.define("qvd::int8_quantize_samples", f"(Tensor x, {_GRIDS}) -> (Tensor, Tensor, Tensor)")
torch.library.define("qvd::int8_linear", f"({_FACTORS}, int samples, ScalarType dtype) -> Tensor")
torch.library.define(
    "qvd::int8_convolve", f"({_FACTORS}, int[] stride, int[] padding, int[] dilation, ScalarType dtype) -> Tensor"
)

quantize = torch.ops.qvd.int8_quantize
quantize_rows = torch.ops.qvd.int8_quantize_rows
quantize_samples = torch.ops.qvd.int8_quantize_samples
linear = torch.ops.qvd.int8_linear
convolve = torch.ops.qvd.int8_convolve


def _kernels(x: Tensor) -> ModuleType:
    try:
        from qvd_core.engines import int8_kernels
    except ImportError as error:
        raise GenerationError("Integer arithmetic on CUDA needs Triton; `pip install triton`.") from error
    if not x.is_cuda and not int8_kernels.INTERPRETED:
        raise GenerationError(f"This integer engine computes on CUDA devices; the tensor is on {x.device}.")
    return int8_kernels


@torch.library.impl("qvd::int8_quantize", "default")
def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, code_min: int, code_max: int) -> Tensor:
    kernels = _kernels(x)
    x = _dense(x)
    codes = torch.empty_like(x, dtype=torch.int8)
    # Memory is all there is to see: samples one after the other, or one sample where all share a grid.
    samples = 1 if len(scale) == 1 else len(x)
    if codes.numel():
        size = x.numel() // samples
        chunks = -(-size // _ELEMENTS)
        with torch.cuda.device_of(x):
            kernels.quantize_samples[(samples * chunks,)](
                x, codes, scale, zero_point, size, len(scale), chunks,
                CODE_MIN=code_min, CODE_MAX=code_max, BLOCK=_ELEMENTS, num_warps=8,
            )  # fmt: skip
    return codes


@torch.library.register_fake("qvd::int8_quantize")
def _(x: Tensor, scale: Tensor, zero_point: Tensor | None, code_min: int, code_max: int) -> Tensor:
    return torch.empty_like(_dense(x), dtype=torch.int8)


@torch.library.impl("qvd::int8_quantize_rows", "default")
def _quantize_rows(x: Tensor, code_min: int, code_max: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(x)
    x = x.contiguous()
    codes, scale, zero_point = _empty_rows(x)
    if codes.numel():
        block = min(kernels.triton.next_power_of_2(x.shape[-1]), _ELEMENTS // 2)
        together = _ELEMENTS // block
        with torch.cuda.device_of(x):
            kernels.quantize_rows[(-(-scale.numel() // together),)](
                x, codes, scale, zero_point, scale.numel(), x.shape[-1],
                CODE_MIN=code_min, CODE_MAX=code_max, SYMMETRIC=symmetric, ROWS=together, BLOCK=block, num_warps=8,
            )  # fmt: skip
    return codes, scale, zero_point


@torch.library.register_fake("qvd::int8_quantize_rows")
def _(x: Tensor, code_min: int, code_max: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_rows(x.contiguous())


def _empty_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return torch.empty_like(x, dtype=torch.int8), scale, torch.empty_like(scale, dtype=torch.int32)


@torch.library.impl("qvd::int8_quantize_samples", "default")
def _quantize_samples(x: Tensor, code_min: int, code_max: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(x)
    x = _dense(x)
    _, scale, zero_point = _empty_samples(x)
    if x.numel():
        # Samples are few and large, so each is searched by many programs.
        size = x.numel() // len(x)
        blocks = -(-size // (_ELEMENTS * _MOST_PARTS))
        parts = -(-size // (_ELEMENTS * blocks))
        lows, highs = x.new_empty((2, len(x), parts), dtype=torch.float32)
        with torch.cuda.device_of(x):
            kernels.sample_ranges[(len(x) * parts,)](x, lows, highs, size, parts, blocks, BLOCK=_ELEMENTS, num_warps=8)
            kernels.sample_grids[(len(x),)](
                lows, highs, scale, zero_point, parts,
                CODE_MIN=code_min, CODE_MAX=code_max, SYMMETRIC=symmetric, PARTS=_MOST_PARTS, num_warps=1,
            )  # fmt: skip
    codes = quantize(x, scale.view(-1), None if symmetric else zero_point.view(-1), code_min, code_max)
    return codes, scale, zero_point


@torch.library.register_fake("qvd::int8_quantize_samples")
def _(x: Tensor, code_min: int, code_max: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_samples(_dense(x))


def _empty_samples(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = x.new_empty((len(x), *[1] * (x.dim() - 1)), dtype=torch.float32)
    return torch.empty_like(x, dtype=torch.int8), scale, torch.empty_like(scale, dtype=torch.int32)


def _dense(x: Tensor) -> Tensor:
    """`x` if its samples are without gaps in memory, one after the other, whatever the order inside; else a copy."""
    expected = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x if len(x) == 1 or x.stride(0) == expected else x.contiguous()


@torch.library.impl("qvd::int8_linear", "default")
def _linear(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None,
    weights: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, weight_sums: Tensor, bias: Tensor | None,
    samples: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    outputs, channels = weights.shape
    # Rows of a sample are an image of height 1.
    image = codes.contiguous().view(samples, 1, 1, -1, channels)
    kernel = weights.view(outputs, 1, 1, 1, channels)
    factors = (scale, zero_point, kernel, weight_scale, weight_zero_point, weight_sums, bias)
    y = _multiply(image, *factors, (1, 1, 1), (1, 1, 1), dtype)
    return y.view(*codes.shape[:-1], outputs)


@torch.library.register_fake("qvd::int8_linear")
def _(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None,
    weights: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, weight_sums: Tensor, bias: Tensor | None,
    samples: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return codes.new_empty((*codes.shape[:-1], len(weights)), dtype=dtype)


@torch.library.impl("qvd::int8_convolve", "default")
def _convolve(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None,
    weights: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, weight_sums: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    dims = len(stride)
    missing = [1] * (3 - dims)  # every convolution is one of volumes
    volumes = codes.view(*codes.shape[:2], *missing, *codes.shape[2:])
    before, after = [0 for _ in missing] + list(padding[:dims]), [0 for _ in missing] + list(padding[dims:])
    image = _padded(volumes, zero_point, before, after)
    kernel = weights.view(len(weights), *missing, *weights.shape[1:])
    factors = (scale, zero_point, kernel, weight_scale, weight_zero_point, weight_sums, bias)
    y = _multiply(image, *factors, (*missing, *stride), (*missing, *dilation), dtype)
    return y.view(len(codes), *y.shape[4 - dims : 4], len(weights)).movedim(-1, 1)


@torch.library.register_fake("qvd::int8_convolve")
def _(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None,
    weights: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, weight_sums: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    dims = len(stride)
    sides = zip(codes.shape[2:], padding[:dims], padding[dims:], strict=True)
    padded = [size + before + after for size, before, after in sides]
    out = _out_sizes(padded, weights.shape[1:-1], stride, dilation)
    return codes.new_empty((len(codes), *out, len(weights)), dtype=dtype).movedim(-1, 1)


def _out_sizes(
    padded: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    axes = zip(padded, kernel, stride, dilation, strict=True)
    return [(size - reach * (taps - 1) - 1) // step + 1 for size, taps, step, reach in axes]


def _padded(codes: Tensor, zero_point: Tensor | None, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Codes [N, C, depth, height, width] of any strides as [N, depth, height, width, C], padded with real zeros.

    A pass of its own over bytes, so that the product, which reads every code once for each tap, need not ask
    where the image ends.
    """
    last = codes.permute(0, 2, 3, 4, 1)
    if not any(before) and not any(after) and last.is_contiguous():
        return last
    samples, *sizes, channels = last.shape
    padded = [size + b + a for size, b, a in zip(sizes, before, after, strict=True)]
    image = codes.new_empty((samples, *padded, channels))
    if image.numel():
        kernels = _kernels(codes)
        block = min(kernels.triton.next_power_of_2(channels), 128)
        with torch.cuda.device_of(codes):
            kernels.pad_samples[(samples * padded[0] * padded[1], -(-channels // block))](
                codes, image, zero_point, 1 if zero_point is None else len(zero_point), channels,
                *codes.stride(), *sizes, *padded, *before, PIXELS=_ELEMENTS // 128, CHANNELS=block, num_warps=4,
            )  # fmt: skip
    return image


def _multiply(
    image: Tensor, scale: Tensor, zero_point: Tensor | None,
    kernel: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, weight_sums: Tensor, bias: Tensor | None,
    stride: Sequence[int], dilation: Sequence[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Outputs [N, depth, height, width, O] of codes [N, depth, height, width, C], weights [O, kd, kh, kw, C]."""
    kernels = _kernels(image)
    samples, *sizes, channels = image.shape
    outputs, *taps, _ = kernel.shape
    out = _out_sizes(sizes, taps, stride, dilation)
    y = image.new_empty((samples, *out, outputs), dtype=dtype)
    rows = y.numel() // outputs
    if rows:
        cdiv = kernels.triton.cdiv
        with torch.cuda.device_of(image):
            kernels.multiply[
                lambda tile: (cdiv(rows, tile["BLOCK_M"]) * cdiv(outputs, tile["BLOCK_N"]),)
            ](
                image, kernel, y, scale, zero_point, weight_scale, weight_zero_point, weight_sums, bias,
                rows, outputs, channels, kernels.triton.next_power_of_2(rows), len(scale),
                *out, *sizes, *stride, *dilation,
                TAPS=taps[0] * taps[1] * taps[2], TAPS_H=taps[1], TAPS_W=taps[2],
            )  # fmt: skip
    return y
