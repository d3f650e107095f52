"""Logarithmic grids against the formulas evaluated one number at a time, and against what must hold exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qvd_core.quantizers.logarithmic import (
    FORMS,
    LogGrid,
    dequantize,
    fake_quantize,
    level_count,
    log_grid,
    port_grid,
    quantize,
)
from tests.closeness import assert_close, assert_same

COEFFICIENTS = (0.3, 0.5, 1.0, 1.7, 4.2, 30.0, 1000.0)
BITS = (3, 4, 6, 8, 9, 12, 16)
forms = pytest.mark.parametrize("form", list(FORMS))
midpoints = pytest.mark.parametrize("midpoint", [False, True], ids=["code-midpoint", "value-midpoint"])
signs = pytest.mark.parametrize("sign_inside", [True, False], ids=["sign-inside", "sign-outside"])


def grid_of(absmax, coefficient, bits, form="H1", sign_inside=True, midpoint=False) -> LogGrid:
    coefficient = torch.tensor(coefficient, dtype=torch.float64)
    return log_grid(torch.tensor(float(absmax)), coefficient, bits, form, sign_inside, midpoint)


def magnitudes(absmax: float, octaves: float, count: int = 400, seed: int = 0) -> torch.Tensor:
    """Both signs, evenly spread in the logarithm from `absmax` down `octaves` octaves, with 0 and both ends."""
    generator = torch.Generator().manual_seed(seed)
    x = absmax * torch.exp2(-octaves * torch.rand(count, generator=generator, dtype=torch.float64))
    x = x * (2 * torch.randint(0, 2, (count,), generator=generator) - 1)
    return torch.cat([x.float(), torch.tensor([0.0, absmax, -absmax])])


def level(form: str, q: float, n: int, alpha: float) -> float:
    """Magnitude q = 0, 1, .. counted down from the largest, for A = 1."""
    if form == "H1":
        return 2 ** (-q / alpha)
    if form == "H2":
        return alpha * ((1 + 1 / alpha) ** ((n - q) / n) - 1)
    return alpha * 2**-q


def rounded(form: str, y: float, n: int, alpha: float) -> float:
    """r before rounding, counted down from the largest magnitude, for |x| / A = y."""
    if form == "H1":
        return -alpha * math.log2(y)
    if form == "H2":
        return n - n * math.log2((y + alpha) / alpha) / math.log2((1 + alpha) / alpha)
    return -math.log2(y / alpha)


@forms
@signs
@midpoints
def test_the_formula_one_number_at_a_time(form, sign_inside, midpoint):
    for bits in (3, 4, 6, 8, 12):
        n = 2 ** (bits - sign_inside) - 1
        for alpha in (0.5, 1.0, 1.7, 8.0, 60.0):
            absmax = 3.7
            grid = grid_of(absmax, alpha, bits, form, sign_inside, midpoint)
            assert grid.levels == n
            x = magnitudes(absmax, 14, 60, seed=bits)
            found, codes = fake_quantize(x, grid).tolist(), quantize(x, grid).tolist()
            for value, code, restored in zip(x.tolist(), codes, found, strict=True):
                if value == 0:
                    assert (code, restored) == (0, 0.0)
                    continue
                y = abs(value) / float(grid.absmax)
                r = rounded(form, y, n, alpha)
                if midpoint:
                    q = max(0, math.floor(r))
                    q += y < (level(form, q, n, alpha) + level(form, q + 1, n, alpha)) / 2
                elif abs(r - math.floor(r) - 0.5) < 1e-4 / alpha:
                    continue  # a tie up to rounding: either neighbour will do
                else:
                    q = max(0, math.floor(r + 0.5))
                sign = math.copysign(1, value)
                expected = sign * float(grid.absmax) * level(form, q, n, alpha) if q < n else 0.0
                assert code == (sign * (n - q) if q < n else 0), f"{form} {bits} bits, alpha {alpha}, x {value}"
                assert restored == pytest.approx(expected, rel=1e-6, abs=0)


@forms
@signs
@midpoints
@pytest.mark.parametrize("absmax", [3.7, 1e-30, 1e30, 6e-44], ids=["usual", "small", "large", "subnormal"])
def test_what_holds_bit_for_bit(form, sign_inside, midpoint, absmax):
    for bits in BITS:
        for alpha in (*COEFFICIENTS, 1e7):
            grid = grid_of(absmax, alpha, bits, form, sign_inside, midpoint)
            ceiling = alpha * grid.absmax if form == "H3" else grid.absmax
            if not torch.isfinite(ceiling):
                continue
            name = f"{form} {bits} bits, alpha {alpha}"
            x = magnitudes(float(grid.absmax), 20)
            restored = fake_quantize(x, grid)
            assert_same(restored, dequantize(quantize(x, grid), grid), f"{name}: quantize then dequantize")
            assert_same(fake_quantize(restored, grid), restored, f"{name}: idempotent")
            assert_same(fake_quantize(-x, grid), -restored, f"{name}: odd")
            assert_same(quantize(-x, grid), -quantize(x, grid), f"{name}: odd codes")
            assert restored[-3] == 0, f"{name}: zero"
            assert restored.abs().max() <= ceiling * (1 + 1e-6 * (form == "H3")), f"{name}: overshoot"
            if form != "H3" or alpha == 1:
                assert_same(restored[-2:], x[-2:], f"{name}: A and -A")
                assert_same(fake_quantize(4 * x[-2:], grid), x[-2:], f"{name}: clipping")


@forms
@midpoints
def test_order_is_kept_and_every_level_is_its_own(form, midpoint):
    for bits in BITS:
        grid = grid_of(2.9, 4.2, bits, form, midpoint=midpoint)
        x = magnitudes(2.9, 20).sort().values
        assert (quantize(x, grid).diff() >= 0).all()
        held = grid.magnitudes >= torch.finfo(torch.float32).tiny  # many bits reach below fp32
        assert held[-1]
        assert_same(fake_quantize(grid.magnitudes, grid), grid.magnitudes, f"{bits} bits, values")
        assert_close(quantize(grid.magnitudes[held], grid), held.nonzero().flatten(), 0, f"{bits} bits, codes")


@signs
@midpoints
@pytest.mark.parametrize("bits", BITS)
def test_relative_error_of_the_default_form(bits, sign_inside, midpoint):
    """At most 2^(1/(2 alpha)) - 1 above the zero threshold; with value midpoints (s - 1) / (s + 1), s = 2^(1/alpha)."""
    n = level_count(bits, sign_inside)
    for alpha in COEFFICIENTS:
        step = 2 ** (1 / alpha)
        bound = (step - 1) / (step + 1) if midpoint else math.sqrt(step) - 1
        grid = grid_of(3.7, alpha, bits, "H1", sign_inside, midpoint)
        x = magnitudes(3.7, min((n - 1) / alpha, 80), 2000)[:-3]
        error = ((fake_quantize(x, grid).double() - x) / x).abs().max().item()
        # A tie sits up to fp32 rounding where the bound is met.
        assert error <= bound * (1 + 1e-5) + 1e-6, f"alpha {alpha}: {error:.4g} above {bound:.4g}"
        if alpha <= 4.2 and n > 30:
            assert error > 0.95 * bound, f"alpha {alpha}: {error:.4g}, far below {bound:.4g}"


# Worked out by hand: bits, whether they include the sign, octaves, alpha = n / octaves, error in percent.
FINEST = [
    (8, True, 10, 12.7, 2.8),
    (8, True, 12, 10.6, 3.3),
    (8, True, 14, 9.1, 3.9),
    (8, False, 10, 25.5, 1.4),
    (8, False, 12, 21.3, 1.6),
    (8, False, 14, 18.2, 1.9),
    (6, True, 10, 3.1, 11.8),
    (6, True, 12, 2.6, 14.4),
    (6, True, 14, 2.2, 16.9),
    (6, False, 10, 6.3, 5.7),
    (6, False, 12, 5.3, 6.8),
    (6, False, 14, 4.5, 8.0),
    (4, True, 10, 0.70, 64),
    (4, True, 12, 0.58, 81),
    (4, True, 14, 0.50, 100),
    (4, False, 10, 1.5, 26),
    (4, False, 12, 1.25, 32),
    (4, False, 14, 1.07, 38),
]


@pytest.mark.parametrize(("bits", "sign_inside", "octaves", "alpha", "percent"), FINEST)
def test_how_fine_a_grid_can_cover_so_many_octaves(bits, sign_inside, octaves, alpha, percent):
    finest = level_count(bits, sign_inside) / octaves
    assert finest == pytest.approx(alpha, abs=0.051 if alpha > 1.3 else 0.006)
    # Just above the middle between the two largest magnitudes, where the error is greatest.
    x = torch.tensor([2 ** (-0.5 / finest) * (1 + 1e-6)])
    error = fake_quantize(x, grid_of(1, finest, bits, "H1", sign_inside)) / x - 1
    assert 100 * float(error) == pytest.approx(percent, abs=0.06 if percent < 20 else 0.6)


def test_finer_grids_use_more_codes_until_they_no_longer_reach_the_smallest_values():
    octaves, bits = 12, 8
    finest = (level_count(bits) - 1) / octaves
    x = magnitudes(4.4, octaves, 20_000)[:-3]

    def codes(alpha: float) -> torch.Tensor:
        return quantize(x, grid_of(4.4, alpha, bits)).abs()

    assert len(codes(1.0).unique()) == octaves + 1  # "data concentration": 13 of 128 codes
    used = [len(codes(alpha).unique()) for alpha in (1, 2, 4, 8, finest)]
    assert used == sorted(set(used)), used
    assert used[-1] == level_count(bits)
    assert not (codes(finest) == 0).any()
    zeros = [int((codes(factor * finest) == 0).sum()) for factor in (1, 1.1, 1.5, 2, 4)]
    assert zeros == sorted(set(zeros)), zeros


def ported(x: float, absmax: float, bits: int) -> float:
    """The public port's rule, word for word."""
    if x == 0:
        return 0.0
    y = abs(x) / absmax
    floor = math.floor(math.log2(y))
    logarithm = floor + 1 if y - 2.0**floor >= 2.0 ** (floor - 1) else floor
    r = -logarithm
    if r >= 2**bits:
        return 0.0
    q = min(max(r, 0), 2**bits - 1)
    return math.copysign(1, x) * absmax * 2.0**-q


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("absmax", [1.0, 4.421875, 3.7, 0.1, 5.8130755])
def test_the_port_bit_for_bit(bits, absmax):
    grid = port_grid(torch.tensor(absmax), bits)
    a = float(grid.absmax)
    assert grid.levels == 2**bits
    # Random values, and each switching point and level of the rule with the fp32 numbers around it.
    special = np.float32([factor * a * 2.0**-k for k in range(-2, 80) for factor in (1, 1.5)])
    around = [special, np.nextafter(special, np.float32(0)), np.nextafter(special, np.float32(np.inf))]
    x = torch.cat([magnitudes(a, 2 ** min(bits, 6) + 2.0, 2000), *(torch.from_numpy(s) for s in around)])
    x = torch.cat([x, -x])
    expected = torch.tensor(np.float32([ported(value, a, bits) for value in x.tolist()]))
    assert_same(fake_quantize(x, grid), expected, f"{bits} bits, A {a}")
    if bits <= 6:  # below fp32's reach, smaller values could not be told from zero
        assert expected[expected > 0].min() == np.float32(a * 2.0 ** -(2**bits - 1))


def test_the_port_has_one_level_more_than_its_bits_can_code():
    port, coded = port_grid(torch.tensor(1.0), 3), grid_of(1, 1, 3, sign_inside=False, midpoint=True)
    assert_close(port.magnitudes, [0, *(2.0**-q for q in range(7, -1, -1))], 0, "port")
    assert_close(coded.magnitudes, [0, *(2.0**-q for q in range(6, -1, -1))], 0, "with a code for zero")
    smallest = torch.tensor([2.0**-7])
    assert fake_quantize(smallest, port) == smallest
    assert fake_quantize(smallest, coded) == 0


def test_value_midpoints_lie_where_the_formula_puts_them():
    for alpha in (0.5, 1.0, 3.0, 12.0):
        grid = grid_of(1, alpha, 8, midpoint=True)
        low = torch.exp2(-torch.arange(1, 20, dtype=torch.float64) / alpha)
        threshold = low * (1 + 2 ** (1 / alpha)) / 2
        above, below = ((threshold * factor).float() for factor in (1 + 1e-6, 1 - 1e-6))
        assert (quantize(above, grid) - quantize(below, grid) == 1).all()
        assert_close(fake_quantize(below, grid), low, 1e-7, f"alpha {alpha}")


@signs
@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_hold_sign_and_magnitude_in_the_smallest_dtype(bits, sign_inside):
    grid = grid_of(2, 1.5, bits, sign_inside=sign_inside)
    n = 2 ** (bits - sign_inside) - 1
    codes = quantize(torch.tensor([2.0, -2.0, 0.0, -0.0]), grid)
    assert codes.tolist() == [n, -n, 0, 0]
    expected = torch.int8 if n <= 127 else torch.int16 if n <= 32767 else torch.int32
    assert codes.dtype == expected
    every = torch.arange(-n, n + 1).to(expected)
    assert_same(dequantize(every, grid), -dequantize(every.flip(0), grid), "all codes")
    assert len(dequantize(every, grid)) == 2**bits - 1 if sign_inside else 2 ** (bits + 1) - 1


@forms
@midpoints
def test_a_range_of_zero_is_all_zeros(form, midpoint):
    grid = grid_of(0, 1.3, 8, form, midpoint=midpoint)
    x = torch.tensor([0.0, 1e-45, -3.0, 1e30])
    assert_same(fake_quantize(x, grid), torch.zeros(4), "one grid")
    assert quantize(x, grid).tolist() == [0, 0, 0, 0]
    beside = log_grid(torch.tensor([[0.0], [2.0]]), torch.tensor(1.3), 8, form, midpoint=midpoint)
    restored = fake_quantize(torch.full((2, 3), 2.0), beside)
    assert not restored[0].any()
    assert restored[1].all()


@forms
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_many_grids_at_once_are_those_one_at_a_time(form, bits):
    x = magnitudes(4.4, 12, 6 * 35 - 3).reshape(6, 35)
    coefficients = torch.tensor(COEFFICIENTS, dtype=torch.float64)
    grids = log_grid(x.abs().max(), coefficients[:, None, None], bits, form)
    codes, restored = quantize(x, grids), fake_quantize(x, grids)
    assert restored.shape == (len(COEFFICIENTS), 6, 35)
    for index, coefficient in enumerate(COEFFICIENTS):
        alone = grid_of(x.abs().max(), coefficient, bits, form)
        assert_same(codes[index], quantize(x, alone), f"codes, alpha {coefficient}")
        assert_same(restored[index], fake_quantize(x, alone), f"values, alpha {coefficient}")


@pytest.mark.parametrize("shape", [(6, 1), (1, 35), (35,), (6, 35), (2, 1, 1), (2, 6, 1), (1, 1), (1,)], ids=str)
def test_a_range_for_each_row_channel_or_number(shape):
    x = magnitudes(4.4, 12, 6 * 35 - 3).reshape(6, 35)
    absmax = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 4 + 0.1
    alpha = torch.tensor(2.0)
    together = fake_quantize(x, log_grid(absmax, alpha, 6))
    x, absmax = torch.broadcast_tensors(x, absmax)
    pairs = zip(x.ravel(), absmax.ravel(), strict=True)
    alone = [fake_quantize(value, log_grid(a, alpha, 6)) for value, a in pairs]
    assert_same(together, torch.stack(alone).reshape(x.shape), str(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bf16", "fp16", "fp64"])
def test_other_dtypes_are_kept(dtype):
    x = magnitudes(3.5, 6).to(dtype)
    restored = fake_quantize(x, grid_of(3.5, 4.0, 8))
    assert restored.dtype == dtype
    assert_same(restored, fake_quantize(x.float(), grid_of(3.5, 4.0, 8)).to(dtype), "values")


def test_memory_layout_does_not_matter():
    x = magnitudes(3.5, 6, 12 * 20 - 3).reshape(12, 20)
    grid = log_grid(torch.tensor(3.5), torch.tensor([1.0, 4.0])[:, None, None], 8)
    assert_same(fake_quantize(x.T, grid), fake_quantize(x.T.contiguous(), grid), "transposed")
    assert fake_quantize(x[:0], grid).shape == (2, 0, 20)
