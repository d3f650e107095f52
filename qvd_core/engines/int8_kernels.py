"""Triton kernels of `cuda_int8`: grids and codes of inputs, padding by zero points, one integer product.

Linear layers and convolutions share one product. A convolution is that of a matrix with one row for each
output position, made of the codes under the kernel there (implicit GEMM: rows are addressed, never built);
a linear layer is a convolution of kernel 1. So weights are [out, taps, in], inputs have channels last.

Two things keep codes equal to those of `qvd_core.quantizers.uniform`, bit for bit. Divisions are `div_rn`,
since `/` on a GPU is off by up to two units in the last place. And values are clamped before they are rounded:
the ends are whole numbers, so the order makes no difference, yet it keeps the compiler from fusing
the product and the addition in `_rounded` into one operation with a single rounding.
"""

# ruff: noqa: N803 (capitals are Triton's custom for what is fixed when a kernel is compiled)

import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret

# Adding and subtracting 1.5 * 2^23 leaves an fp32 of magnitude below 2^22 without fraction, halves to even.
# (tl has no such rounding of its own, and its interpreter no libdevice.)
_NO_FRACTION = tl.constexpr(12582912.0)
_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _rounded(values):
    return (values + _NO_FRACTION) - _NO_FRACTION


@triton.jit
def _codes_of(values, scale, zero_point, CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr):
    """As `uniform.quantize`; `zero_point` in fp32. What NaN becomes is not defined."""
    values = values * tl.div_rn(1.0, scale)
    values = tl.minimum(tl.maximum(values, CODE_MIN - zero_point), CODE_MAX - zero_point)
    return (_rounded(values) + zero_point).to(tl.int8)


@triton.jit
def _grid_of(low, high, CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr, SYMMETRIC: tl.constexpr):
    """As `uniform.make_grid`, for low <= 0 <= high: scale, and the zero point in fp32."""
    if SYMMETRIC:
        scale = tl.div_rn(tl.maximum(-low, high), CODE_MAX * 1.0)
    else:
        scale = tl.div_rn(high - low, (CODE_MAX - CODE_MIN) * 1.0)
    scale = tl.where(tl.div_rn(1.0, scale) < _INFINITY, scale, 1.0)
    zero_point = tl.zeros_like(scale)
    if not SYMMETRIC:
        zero_point = CODE_MIN - _rounded(tl.div_rn(low, scale))
        zero_point = tl.minimum(tl.maximum(zero_point, CODE_MIN * 1.0), CODE_MAX * 1.0)
    return scale, zero_point


@triton.jit
def quantize_samples(
    x, codes, scale, zero_point, size, groups, chunks,
    CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of one sample of `size` values, on the grid of sample % groups."""
    sample = tl.program_id(0) // chunks
    place = (tl.program_id(0) % chunks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + sample.to(tl.int64) * size + place, mask=place < size, other=0.0).to(tl.float32)
    step = tl.load(scale + sample % groups)
    zero = 0.0
    if zero_point is not None:
        zero = tl.load(zero_point + sample % groups).to(tl.float32)
    result = _codes_of(values, step, zero, CODE_MIN, CODE_MAX)
    tl.store(codes + sample.to(tl.int64) * size + place, result, mask=place < size)


@triton.jit
def quantize_rows(
    x, codes, scale, zero_point, rows, size,
    CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr, SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some rows of `size` values: their ranges, then their codes while they are still in the cache."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = row.to(tl.int64) * size
    low = tl.zeros([ROWS], tl.float32)
    high = tl.zeros([ROWS], tl.float32)
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = (row < rows)[:, None] & (column < size)[None, :]
        values = tl.load(x + start[:, None] + column[None, :], mask=there, other=0.0).to(tl.float32)
        low = tl.minimum(low, tl.min(values, 1))
        high = tl.maximum(high, tl.max(values, 1))
    step, zero = _grid_of(low, high, CODE_MIN, CODE_MAX, SYMMETRIC)
    tl.store(scale + row, step, mask=row < rows)
    tl.store(zero_point + row, zero.to(tl.int32), mask=row < rows)
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = (row < rows)[:, None] & (column < size)[None, :]
        values = tl.load(x + start[:, None] + column[None, :], mask=there, other=0.0).to(tl.float32)
        result = _codes_of(values, step[:, None], zero[:, None], CODE_MIN, CODE_MAX)
        tl.store(codes + start[:, None] + column[None, :], result, mask=there)


@triton.jit
def sample_ranges(x, lows, highs, size, parts, blocks, BLOCK: tl.constexpr):
    """Lowest and highest value, and zero, of one of the `parts` of a sample, so many `blocks` each."""
    begin = (tl.program_id(0) % parts).to(tl.int64) * blocks * BLOCK
    x += (tl.program_id(0) // parts).to(tl.int64) * size
    low = tl.zeros([BLOCK], tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    for block in range(0, blocks):
        place = begin + block * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(x + place, mask=place < size, other=0.0).to(tl.float32)
        low = tl.minimum(low, values)
        high = tl.maximum(high, values)
    tl.store(lows + tl.program_id(0), tl.min(low, 0))
    tl.store(highs + tl.program_id(0), tl.max(high, 0))


@triton.jit
def sample_grids(
    lows, highs, scale, zero_point, parts,
    CODE_MIN: tl.constexpr, CODE_MAX: tl.constexpr, SYMMETRIC: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One sample's grid from the ranges of its parts."""
    sample = tl.program_id(0)
    part = tl.arange(0, PARTS)
    low = tl.min(tl.load(lows + sample * parts + part, mask=part < parts, other=0.0), 0)
    high = tl.max(tl.load(highs + sample * parts + part, mask=part < parts, other=0.0), 0)
    step, zero = _grid_of(low, high, CODE_MIN, CODE_MAX, SYMMETRIC)
    tl.store(scale + sample, step)
    tl.store(zero_point + sample, zero.to(tl.int32))


@triton.jit
def pad_samples(
    codes, padded, zero_point, groups, channels, by_sample, by_channel, by_depth, by_row, by_column,
    depth, height, width, padded_depth, padded_height, padded_width, front, top, left,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Codes of any strides into a larger image with channels last, around them the code of zero: one line of it."""
    line = tl.program_id(0)
    sample = (line // padded_height // padded_depth).to(tl.int64)
    plane = (line // padded_height % padded_depth - front).to(tl.int64)
    row = (line % padded_height - top).to(tl.int64)
    on_line = (plane >= 0) & (plane < depth) & (row >= 0) & (row < height)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    codes += sample * by_sample + plane * by_depth + row * by_row
    padded += line.to(tl.int64) * padded_width * channels
    for first in range(0, padded_width, PIXELS):
        column = (first + tl.arange(0, PIXELS)).to(tl.int64)
        inside = on_line & (column >= left) & (column < left + width)
        place = (column - left)[:, None] * by_column + channel[None, :] * by_channel
        values = tl.load(codes + place, mask=inside[:, None] & (channel < channels)[None, :], other=0)
        if zero_point is not None:
            values = tl.where(inside[:, None], values, tl.load(zero_point + sample % groups).to(tl.int8))
        there = (column < padded_width)[:, None] & (channel < channels)[None, :]
        tl.store(padded + column[:, None] * channels + channel[None, :], values, mask=there)


def _tile(m: int, n: int, k: int, stages: int, warps: int) -> triton.Config:
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_stages=stages, num_warps=warps)


# Large tiles for Hopper's 64-row instructions, smaller ones for Ampere's shared memory (what does not fit
# is left out by the tuner) and for few rows. 64 channels a step suit widths of 320 or 960 better than 128.
_TILES = [
    _tile(128, 256, 128, 3, 8),
    _tile(128, 256, 64, 4, 8),
    _tile(128, 128, 128, 3, 8),
    _tile(128, 128, 64, 4, 4),
    _tile(128, 64, 64, 4, 4),
    _tile(64, 128, 128, 3, 4),
    _tile(64, 64, 64, 5, 4),
    _tile(16, 64, 128, 5, 4),
]


@triton.autotune(
    [_tile(32, 32, 32, 1, 4)] if INTERPRETED else _TILES,
    key=["magnitude", "outputs", "channels", "TAPS"],
    cache_results=True,  # a model has a hundred shapes, and each takes a second
)
@triton.heuristics({"WHOLE_BLOCKS": lambda given: given["channels"] % given["BLOCK_K"] == 0})
@triton.jit
def multiply(
    codes, weights, y, scale, zero_point, weight_scale, weight_zero_point, weight_sums, bias,
    rows, outputs, channels, magnitude, groups,
    out_depth, out_height, out_width, depth, height, width,
    stride_d, stride_h, stride_w, dilation_d, dilation_h, dilation_w,
    TAPS: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, WHOLE_BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_M, BLOCK_N] of y [rows, outputs]; `magnitude` of the rows only chooses the tile."""
    # Tiles go down eight rows of tiles before they go right, so that neighbours share cached inputs.
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    band = tl.program_id(0) // (8 * tiles_n)
    in_band = tl.minimum(tiles_m - band * 8, 8)
    tile_m = band * 8 + tl.program_id(0) % (8 * tiles_n) % in_band
    tile_n = tl.program_id(0) % (8 * tiles_n) // in_band
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.minimum(m, rows - 1)  # beyond the end: read what is there, write nothing
    output = tl.minimum(n, outputs - 1)
    k = tl.arange(0, BLOCK_K)

    sample = row // (out_depth * out_height * out_width)
    plane = row // (out_height * out_width) % out_depth * stride_d
    line = row // out_width % out_height * stride_h
    column = row % out_width * stride_w
    pixel = ((sample.to(tl.int64) * depth + plane) * height + line) * width + column
    codes += (pixel * channels)[:, None] + k[None, :]
    weights += (output.to(tl.int64) * (TAPS * channels))[None, :] + k[:, None]

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    row_sums = tl.zeros([BLOCK_M], tl.int32)
    blocks = tl.cdiv(channels, BLOCK_K)
    for step in range(0, TAPS * blocks):
        tap = 0
        shift = 0
        first = step * BLOCK_K
        if TAPS > 1:
            tap = step // blocks
            first = step % blocks * BLOCK_K
            shift = tap // (TAPS_H * TAPS_W) * dilation_d * height + tap // TAPS_W % TAPS_H * dilation_h
            shift = (shift * width + tap % TAPS_W * dilation_w) * channels
        if WHOLE_BLOCKS:
            a = tl.load(codes + shift + first)
            b = tl.load(weights + tap * channels + first)
        else:
            there = first + k < channels
            a = tl.load(codes + shift + first, mask=there[None, :], other=0)
            b = tl.load(weights + tap * channels + first, mask=there[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
        if weight_zero_point is not None:
            row_sums += tl.sum(a.to(tl.int32), 1)

    if zero_point is not None:
        zero = tl.load(zero_point + sample % groups)
        total -= zero[:, None] * tl.load(weight_sums + output)[None, :]
        if weight_zero_point is not None:
            row_sums -= zero * (TAPS * channels)
    if weight_zero_point is not None:
        total -= row_sums[:, None] * tl.load(weight_zero_point + output)[None, :]
    step_size = tl.load(scale + sample % groups)[:, None] * tl.load(weight_scale + output)[None, :]
    result = total.to(tl.float32) * step_size
    if bias is not None:
        result += tl.load(bias + output).to(tl.float32)[None, :]
    there = (m < rows)[:, None] & (n < outputs)[None, :]
    place = m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(y + place, result.to(y.dtype.element_ty), mask=there)
