"""Integer arithmetic on CUDA: int8 codes, int32 sums, one rescaling. Layers are built on these functions.

    x' = (q - z_x) s_x        w' = (w - z_w) s_w
    y  = s_x s_w sum_k (q - z_x)(w - z_w) + bias
       = s_x s_w (sum q w - z_x sum w - z_w sum q + K z_x z_w) + bias

Tensor cores compute `sum q w`, the weights' sums are known beforehand, and `sum q` is found on the way. All of
it is integer and exact: what is summed has magnitude 255 * 255 at most, so K <= 2^15 products stay
below 2^31, and longer sums are refused. The floating-point part is the conversion to fp32, the two products
with the scales, the bias, and the rounding to the output's dtype.

Terms that are zero are left out when a kernel is compiled: pass None, not zeros, as the zero point of symmetric
inputs. Affine weights of at most 7 bits lose theirs here, for w - z_w itself fits an int8.

The products are Triton's, with everything fused behind them. `torch._int_mm` may multiply faster, but hands over
int32: for a linear layer of 1280 channels, writing and reading 4 bytes for every output takes as long as the
product, by an H100's data sheet. It could pay where K is several thousand; that is to be measured before it is added.
Four-bit codes are multiplied as eight-bit ones: Hopper's tensor cores have no int4.

Nothing here needs Triton until a kernel runs. A product of a new size tries several tiles first and keeps the
best on disk, so call it once before a CUDA graph is captured. With TRITON_INTERPRET=1 the same kernels run,
slowly, on a CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvd_core.engines import int8_ops

KINDS = ("linear", "conv1d", "conv2d", "conv3d")
LONGEST_SUM = 2**15
ACTIVATION_BITS = range(3, 9)
WEIGHT_BITS = range(2, 9)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Why nothing can be computed here, in words; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip is not None or torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is no Nvidia device of compute capability 8.0 or more"
    return None


def takes(
    kind: str, groups: int = 1, products: int = 1, weight_bits: int | None = 8, activation_bits: int | None = 8
) -> str | None:
    """Why a layer cannot be computed in int8 here, in words; None if it can.

    Args:
        kind: "linear", "conv1d", "conv2d" or "conv3d".
        groups: of a convolution.
        products: summed for one output: input channels times the kernel's size.
        weight_bits, activation_bits: None for floating point. Weights on one grid per output channel and
            inputs on one per tensor, sample or row are assumed; other grids are for the caller to refuse.
    """
    if kind not in KINDS:
        return f"a layer of kind {kind!r} is none of {', '.join(KINDS)}"
    if groups != 1:
        return f"a convolution of {groups} groups; only those of one group are computed in integers"
    if products > LONGEST_SUM:
        return f"sums of {products} products could overflow int32; {LONGEST_SUM} are safe"
    if weight_bits not in WEIGHT_BITS:
        return "weights in floating point" if weight_bits is None else f"weights of {weight_bits} bits"
    if activation_bits not in ACTIVATION_BITS:
        return "inputs in floating point" if activation_bits is None else f"inputs of {activation_bits} bits"
    return None


@dataclass(frozen=True, eq=False)
class Weights:
    """A layer's weights as the kernel reads them; made by `pack`.

    Attributes:
        codes: int8 [out, in] of a linear layer, [out, *kernel, in] of a convolution.
        scale: fp32 [out].
        zero_point: int32 [out], None where all are zero.
        sums: int32 [out], of the codes.
        bias: [out] in any floating dtype, or None.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    sums: Tensor
    bias: Tensor | None


def pack(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, bias: Tensor | None = None) -> Weights:
    """`Weights` of a layer, once: looks at values, so it waits for the device.

    Args:
        codes: int8 [out, in] or [out, in, *kernel].
        scale: fp32, one per output channel, in any shape.
        zero_point: int32, likewise; None if all are zero.
        bias: [out].

    Raises:
        ValueError: other dtypes or sizes, or sums that could overflow.
    """
    if codes.dtype != torch.int8 or not 2 <= codes.dim() <= 5:
        raise ValueError(f"Weights are int8 [out, in, *kernel], not {_in_words(codes)}.")
    if reason := takes("linear", products=codes[0].numel()):
        raise ValueError(f"Cannot multiply weights {list(codes.shape)}: {reason}.")
    outputs = len(codes)
    scale, zero_point = _grids(scale, zero_point)
    if len(scale) != outputs:
        raise ValueError(f"Weights {list(codes.shape)} have one scale per output channel, not {len(scale)}.")
    if bias is not None and (bias.shape != (outputs,) or not bias.is_floating_point()):
        raise ValueError(f"The bias of {outputs} output channels cannot be {_in_words(bias)}.")
    if zero_point is not None:
        centred = codes.int() - zero_point.view(-1, *[1] * (codes.dim() - 1))
        if bool((centred == centred.to(torch.int8)).all()):
            codes, zero_point = centred.to(torch.int8), None
    sums = codes.flatten(1).sum(1, dtype=torch.int32)
    codes = codes.movedim(1, -1).contiguous()
    return Weights(codes, scale, zero_point, sums, None if bias is None else bias.detach().contiguous())


def quantize_static(x: Tensor, scale: Tensor, zero_point: Tensor | None, code_min: int, code_max: int) -> Tensor:
    """Codes of `x` on fixed grids, those of `uniform.quantize` on fp32 values, in one pass.

    Args:
        x: fp32, bf16 or fp16, in any memory layout, which the codes keep if it is dense.
        scale: fp32 with one element, or [G], G dividing len(x): sample i is on grid i % G.
        zero_point: int32 like `scale`; None if all are zero.
        code_min, code_max: within -128 .. 127.

    Returns:
        int8 in the shape of `x`. What NaN becomes is not defined.

    Raises:
        ValueError: other dtypes or sizes.
    """
    _check_input(x)
    scale, zero_point = _grids(scale, zero_point)
    if not -128 <= code_min < code_max <= 127:
        raise ValueError(f"Codes {code_min} .. {code_max} do not fit int8.")
    if x.dim() == 0 or (len(scale) > 1 and len(x) % len(scale)):
        raise ValueError(f"{len(scale)} grids do not divide an input {list(x.shape)} along its first axis.")
    codes: Tensor = int8_ops.quantize(x, scale, zero_point, code_min, code_max)
    return codes


def quantize_dynamic(x: Tensor, bits: int, symmetric: bool, kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of `x` on grids of its own: one per row of a linear input, one per sample of a convolution's.

    Grids are those of `uniform.make_grid` on the extremes, as a CPU computes it. (On CUDA torch multiplies by
    1 / 255 instead of dividing by 255, and may differ in the last place of the scale.)

    Args:
        x: fp32, bf16 or fp16; [..., in] of a linear layer, [N, in, ...] of a convolution.
        bits: 3 to 8.
        symmetric: codes around zero.
        kind: "linear", "conv1d", "conv2d" or "conv3d".

    Returns:
        int8 codes in the shape of `x`; fp32 scales [..., 1] or [N, 1, ...]; int32 zero points in the same
        shape, None if symmetric. Where `x` has NaN, codes are not defined.

    Raises:
        ValueError: other dtypes, sizes, bits or kinds.
    """
    _check_input(x)
    if bits not in ACTIVATION_BITS or kind not in KINDS:
        raise ValueError(f"Cannot quantize the input of a layer of kind {kind!r} to {bits} bits of an int8.")
    if x.dim() != 2 + _axes(kind) and (kind != "linear" or x.dim() == 0):
        raise ValueError(f"The input of a {kind} layer cannot be {_in_words(x)}.")
    code_max = 2 ** (bits - 1) - 1
    code_min = -code_max if symmetric else -code_max - 1
    find = int8_ops.quantize_rows if kind == "linear" else int8_ops.quantize_samples
    codes, scale, zero_point = find(x, code_min, code_max, symmetric)
    return codes, scale, None if symmetric else zero_point


def linear(codes: Tensor, scale: Tensor, zero_point: Tensor | None, weights: Weights, dtype: torch.dtype) -> Tensor:
    """Outputs of a linear layer.

    Args:
        codes: int8 [..., in].
        scale: fp32 with one element; [..., 1], one per row; or [G], where row block i along the first axis is
            on grid i % G.
        zero_point: int32 like `scale`; None if all are zero.
        weights: from `pack`.
        dtype: of the output: fp32, bf16 or fp16.

    Returns:
        [..., out], contiguous.

    Raises:
        ValueError: other dtypes or sizes.
    """
    if codes.dtype != torch.int8 or codes.dim() == 0 or weights.codes.shape[1:] != codes.shape[-1:]:
        raise ValueError(f"Codes {_in_words(codes)} do not meet weights [out, *kernel, in] {list(weights.codes.shape)}")
    _check_output(dtype)
    per_row = scale.shape == (*codes.shape[:-1], 1)
    scale, zero_point = _grids(scale, zero_point)
    if not per_row and len(scale) > 1 and len(codes) % len(scale):
        raise ValueError(f"{len(scale)} grids fit neither the rows nor the first axis of codes {list(codes.shape)}.")
    samples = len(codes) if len(scale) > 1 and not per_row else len(scale)
    y: Tensor = int8_ops.linear(codes, scale, zero_point, *_factors(weights), samples, dtype)
    return y


def convolve(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    weights: Weights,
    dtype: torch.dtype,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Outputs of a convolution over one, two or three axes, of one group, padded with zeros.

    Args:
        codes: int8 [N, in, ...]. Channels-last ones without padding are read where they are; others are copied
            once, byte by byte, into an image that is both channels-last and padded.
        scale: fp32 with one element, or one for each of G samples, G dividing N: sample i is on grid i % G.
        zero_point: int32 like `scale`; None if all are zero.
        weights: from `pack`.
        dtype: of the output: fp32, bf16 or fp16.
        stride, padding, dilation: as torch's; padding may be "same" or "valid".

    Returns:
        [N, out, ...] with channels last in memory.

    Raises:
        ValueError: other dtypes or sizes.
    """
    axes = weights.codes.dim() - 2
    if codes.dtype != torch.int8 or axes < 1 or codes.dim() != axes + 2 or codes.shape[1] != weights.codes.shape[-1]:
        raise ValueError(f"Codes {_in_words(codes)} do not meet weights [out, *kernel, in] {list(weights.codes.shape)}")
    _check_output(dtype)
    scale, zero_point = _grids(scale, zero_point)
    if len(scale) > 1 and len(codes) % len(scale):
        raise ValueError(f"{len(scale)} grids do not divide {len(codes)} samples.")
    stride, dilation = _per_axis(stride, axes), _per_axis(dilation, axes)
    reach = [d * (k - 1) for d, k in zip(dilation, weights.codes.shape[1:-1], strict=True)]
    if padding == "same":
        sides = [n // 2 for n in reach] + [n - n // 2 for n in reach]
    elif isinstance(padding, str) and padding != "valid":
        raise ValueError(f"Padding {padding!r} is neither 'same' nor 'valid'; pad with other values beforehand.")
    else:
        sides = _per_axis(0 if isinstance(padding, str) else padding, axes) * 2
    for i, size in enumerate(codes.shape[2:]):
        if size + sides[i] + sides[axes + i] <= reach[i]:
            raise ValueError(f"A kernel {reach[i] + 1} wide exceeds codes {list(codes.shape)} padded by {padding}.")
    y: Tensor = int8_ops.convolve(codes, scale, zero_point, *_factors(weights), stride, sides, dilation, dtype)
    return y


def _factors(weights: Weights) -> tuple[Tensor | None, ...]:
    return weights.codes, weights.scale, weights.zero_point, weights.sums, weights.bias


def _axes(kind: str) -> int:
    return 0 if kind == "linear" else int(kind[-2])


def _per_axis(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] * axes if isinstance(value, int) else list(value)
    if len(values) != axes:
        raise ValueError(f"{values} is not one number for each of {axes} axes.")
    return values


def _grids(scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As vectors."""
    if scale.dtype != torch.float32 or scale.numel() == 0:
        raise ValueError(f"Scales are fp32, one or many, not {_in_words(scale)}.")
    if zero_point is None:
        return scale.reshape(-1), None
    if zero_point.dtype != torch.int32 or zero_point.shape != scale.shape:
        raise ValueError(f"Zero points are int32 {list(scale.shape)} as the scales are, not {_in_words(zero_point)}.")
    return scale.reshape(-1), zero_point.reshape(-1)


def _check_input(x: Tensor) -> None:
    if x.dtype not in _FLOATS:
        raise ValueError(f"Inputs to quantize are fp32, bf16 or fp16, not {_in_words(x)}.")


def _check_output(dtype: torch.dtype) -> None:
    if dtype not in _FLOATS:
        raise ValueError(f"Outputs are fp32, bf16 or fp16, not {dtype}.")


def _in_words(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)}".removeprefix("torch.")
