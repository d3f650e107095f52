"""Uniform grids against torchao's primitives and against what can be said in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from qvd_core.formats import ACTIVATION_BITS, WEIGHT_BITS
from qvd_core.quantizers.uniform import (
    affine_grid,
    dequantize,
    fake_quantize,
    make_grid,
    quantize,
    symmetric_grid,
)
from tests.closeness import assert_close, assert_same

SHAPE = (6, 5, 7)  # [tokens or output channels, ...]
ALL_BITS = sorted({*WEIGHT_BITS, *ACTIVATION_BITS})
SCHEMES = [pytest.param(True, id="symmetric"), pytest.param(False, id="affine")]
bits_and_scheme = pytest.mark.parametrize(
    ("bits", "symmetric"),
    [pytest.param(b, s, id=f"{b}bit-{'symmetric' if s else 'affine'}") for b in range(2, 17) for s in (True, False)],
)
# Axes over which one grid is shared, and the same in torchao's words: the shape of a block.
GRANULARITIES = [
    pytest.param((0, 1, 2), SHAPE, id="per-tensor"),
    pytest.param((1, 2), (1, *SHAPE[1:]), id="per-channel"),
    pytest.param((2,), (1, 1, SHAPE[2]), id="per-token"),
]


def values(*shape: int, seed: int = 0, shift: float = 0.3) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 + shift


def grid_of(x: torch.Tensor, bits: int, symmetric: bool, axes: tuple[int, ...] = (0, 1, 2)):
    return make_grid(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True), bits, symmetric)


@bits_and_scheme
@pytest.mark.parametrize(("axes", "block"), GRANULARITIES)
def test_torchao_agrees(bits, symmetric, axes, block):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives", reason="needs torchao to compare with")
    x = values()
    grid = grid_of(x, bits, symmetric, axes)
    ends = {"quant_min": grid.code_min, "quant_max": grid.code_max}
    mapping = primitives.MappingType.SYMMETRIC if symmetric else primitives.MappingType.ASYMMETRIC
    scale, zero_point = primitives.choose_qparams_affine(x, mapping, block, torch.int32, eps=1e-12, **ends)
    codes = primitives.quantize_affine(x, block, scale, zero_point, torch.int32, **ends)
    restored = primitives.dequantize_affine(codes, block, scale, zero_point, torch.int32, **ends)

    assert_close(grid.scale.flatten(), scale.flatten(), 1e-9, "scale")
    assert_same(grid.zero_point.flatten(), zero_point.flatten().to(torch.int32), "zero point")
    assert_same(quantize(x, grid).to(torch.int32), codes, "codes")
    assert_close(dequantize(quantize(x, grid), grid), restored, 1e-6, "values")


@bits_and_scheme
def test_error_within_half_a_scale_and_clamping_outside(bits, symmetric):
    x = values(2000)
    grid = make_grid(torch.tensor([-2.0]), torch.tensor([3.0]), bits, symmetric)
    restored = fake_quantize(x, grid)
    lowest, highest = ((c - grid.zero_point) * grid.scale for c in (grid.code_min, grid.code_max))
    inside = (x >= lowest) & (x <= highest)
    assert inside.any()
    assert (~inside).any()
    assert_close(restored[inside], x[inside], float(grid.scale) / 2 * (1 + 1e-5), "inside the range")
    assert_same(restored[~inside], torch.where(x > 0, highest, lowest)[~inside], "outside the range")


@bits_and_scheme
@pytest.mark.parametrize(
    ("low", "high"),
    [(-2.7, 3.1), (0.5, 3.0), (-3.0, -0.5), (0.0, 0.0), (-1e-41, 1e-41)],
    ids=["around-zero", "positive", "negative", "zero-width", "subnormal"],
)
def test_zero_is_exact(bits, symmetric, low, high):
    grid = make_grid(torch.tensor([low]), torch.tensor([high]), bits, symmetric)
    zeros = torch.zeros(3)
    assert_same(fake_quantize(zeros, grid), zeros, "zero, fused")
    assert_same(dequantize(quantize(zeros, grid), grid), zeros, "zero")
    per_row = make_grid(torch.full((3, 1), low), torch.full((3, 1), high), bits, symmetric)
    assert_same(fake_quantize(torch.zeros(3, 2), per_row), torch.zeros(3, 2), "zero in rows")


@pytest.mark.parametrize("symmetric", SCHEMES)
def test_constant_zero_channel_beside_others(symmetric):
    x = values(3, 50)
    x[1] = 0
    grid = grid_of(x, 4, symmetric, (1,))
    restored = fake_quantize(x, grid)
    assert torch.isfinite(restored).all()
    assert not restored[1].any()
    assert grid.scale[1] == 1


def test_two_bit_symmetric_levels():
    x = torch.linspace(-1.5, 1.5, 61)
    grid = symmetric_grid(x.min(), x.max(), 2)
    levels = fake_quantize(x, grid).unique()
    assert_close(levels, [-1.5, 0.0, 1.5], 0.0, "levels")


@pytest.mark.parametrize("bits", ALL_BITS)
def test_grid_ends_in_closed_form(bits):
    """Affine: 2^bits codes from low to high. Symmetric: one fewer, and codes negate exactly."""
    low, high = torch.tensor([-1.0]), torch.tensor([3.0])
    grid = affine_grid(low, high, bits)
    assert grid.code_max - grid.code_min == 2**bits - 1
    assert_close(grid.scale, [4 / (2**bits - 1)], 1e-7, "affine scale")
    codes = quantize(torch.cat([low, high]), grid)
    assert (int(codes[0]), int(codes[1])) == (grid.code_min, grid.code_max)

    grid = symmetric_grid(low, high, bits)
    assert grid.code_min == -grid.code_max == -(2 ** (bits - 1) - 1)
    assert_close(grid.scale, [3 / grid.code_max], 1e-7, "symmetric scale")
    x = values(100)
    assert_same(quantize(-x, grid), -quantize(x, grid), "negated codes")


def test_ties_round_to_even():
    grid = symmetric_grid(torch.tensor([-127.0]), torch.tensor([127.0]), 8)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert_close(quantize(x, grid), [0, 2, 2, 0, -2], 0, "codes")
    assert_close(fake_quantize(x, grid), [0, 2, 2, 0, -2], 0, "values")


@pytest.mark.parametrize(("bits", "dtype"), [(2, torch.int8), (8, torch.int8), (9, torch.int32), (16, torch.int32)])
@pytest.mark.parametrize("symmetric", SCHEMES)
def test_codes_have_the_smallest_dtype_that_holds_them(bits, dtype, symmetric):
    x = values(1000)
    grid = grid_of(x, bits, symmetric, (0,))
    codes = quantize(x, grid)
    assert codes.dtype == dtype
    assert codes.min() >= grid.code_min
    assert codes.max() <= grid.code_max


@bits_and_scheme
@pytest.mark.parametrize(("axes", "block"), GRANULARITIES)
def test_fake_quantize_is_quantize_then_dequantize_bit_for_bit(bits, symmetric, axes, block):
    x = values(seed=bits)
    grid = grid_of(x, bits, symmetric, axes)
    # One row of middles between codes, the others reaching past both ends.
    wide = 1.5 * x
    wide[0, 0] = (torch.arange(SHAPE[2]) - 3.5) * grid.scale[0, 0]
    assert_same(fake_quantize(wide, grid), dequantize(quantize(wide, grid), grid), f"blocks {block}")


@pytest.mark.parametrize(("axes", "block"), GRANULARITIES)
def test_memory_layout_does_not_matter(axes, block):
    x = values()
    grid = grid_of(x, 8, False, axes)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert_same(fake_quantize(strided, grid), fake_quantize(x, grid), f"strided, blocks {block}")
    assert_same(quantize(strided, grid), quantize(x, grid), f"codes, blocks {block}")


@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
def test_channels_last_stays_channels_last(per_channel):
    x = values(2, 8, 5, 5)
    grid = grid_of(x, 8, False, (1, 2, 3) if per_channel else (0, 1, 2, 3))
    last = x.contiguous(memory_format=torch.channels_last)
    restored = fake_quantize(last, grid)
    assert restored.is_contiguous(memory_format=torch.channels_last)
    assert_same(restored, fake_quantize(x, grid), "channels last")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("axes", "block"), GRANULARITIES)
def test_half_precision_input_keeps_its_dtype(dtype, axes, block):
    x = values().to(dtype)
    grid = grid_of(x.float(), 8, False, axes)
    restored = fake_quantize(x, grid)
    assert restored.dtype == dtype
    rounding = torch.finfo(dtype).eps * x.float().abs().max().item()
    assert_close(restored, x, grid.scale.max().item() / 2 + rounding, f"{dtype}, blocks {block}")


@pytest.mark.parametrize("symmetric", SCHEMES)
def test_signal_to_noise_follows_six_decibels_per_bit(symmetric):
    """A uniform signal over the whole range has an error of scale^2 / 12."""
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64).float()
    for bits in (6, 8, 10):
        grid = make_grid(x.min(), x.max(), bits, symmetric)
        error = (fake_quantize(x, grid) - x).double().square().mean().item()
        assert math.isclose(error, float(grid.scale) ** 2 / 12, rel_tol=0.05), f"{bits} bits: {error:.4g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scales", [1, 3], ids=["one-grid", "several"])
def test_what_is_no_number_is_seen_and_what_is_too_large_is_clipped(dtype, scales):
    """A variant's NaN must reach whoever looks for it, not turn into a plausible code."""
    grid = make_grid(-torch.ones(scales), 2 * torch.ones(scales), 4, symmetric=False)
    x = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    restored = fake_quantize(x, grid)
    assert restored.dtype == dtype
    assert math.isnan(restored[0])
    assert_same(restored[1:], torch.tensor([2.0, -1.0], dtype=dtype))
