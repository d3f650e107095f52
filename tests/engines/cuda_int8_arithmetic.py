"""Int8 arithmetic against float64 sums of (q - z_x)(w - z_w), which are exact; run by test_cuda_int8.py.

By themselves, on a GPU: `pytest tests/engines/cuda_int8_arithmetic.py`; anywhere, slowly, with
TRITON_INTERPRET=1 before it. A process can do one of the two only, so this file is no test_*.py.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qvd_core.engines import cuda_int8, int8_ops
from qvd_core.quantizers.uniform import Grid, make_grid, quantize
from tests.closeness import assert_close, assert_same

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # in rows beyond the last
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]
schemes = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.4).to(dtype)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def reshaped(grids: Tensor, x: Tensor) -> Tensor:
    """[G] along the first axis of `x`."""
    return grids.repeat(len(x) // len(grids)).view(-1, *[1] * (x.dim() - 1))


# Quantization

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "every-other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "other-axis-first": lambda x: x.transpose(0, 1)[:4],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@schemes
def test_static_codes_in_any_layout(layout, groups, symmetric):
    x = LAYOUTS[layout](random(4, 6, 5, 7))
    grid = make_grid(-torch.arange(1.0, groups + 1), torch.arange(1.0, groups + 1) / 2, 6, symmetric)
    zero_point = None if symmetric else grid.zero_point
    codes = cuda_int8.quantize_static(*on_device(x, grid.scale, zero_point), grid.code_min, grid.code_max)
    expected = quantize(x, Grid(reshaped(grid.scale, x), reshaped(grid.zero_point, x), grid.code_min, grid.code_max))
    assert_same(codes.cpu(), expected, layout)
    if layout in ("contiguous", "channels-last", "transposed"):
        assert codes.stride() == x.stride()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bits", [3, 5, 8])
@schemes
def test_static_codes_in_any_dtype(dtype, bits, symmetric):
    x = random(9, 1001, dtype=dtype)
    grid = make_grid(torch.tensor([-1.7]), torch.tensor([5.1]), bits, symmetric)
    codes = cuda_int8.quantize_static(*on_device(x, grid.scale, grid.zero_point), grid.code_min, grid.code_max)
    assert_same(codes.cpu(), quantize(x, grid), "codes")
    assert codes.min() == grid.code_min
    assert bits > 5 or codes.max() == grid.code_max


def test_halves_are_rounded_to_even_and_far_values_to_the_ends():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3e9, -3e38, torch.inf, -torch.inf, 126.5, 0.49999997])
    codes = cuda_int8.quantize_static(*on_device(x, torch.ones(1), None), -127, 127)
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2, 127, -127, 127, -127, 126, 0]


def test_values_at_a_boundary_fall_on_the_same_side():
    """Where x / scale, and x * (1 / scale) in one operation with what follows, round otherwise than in two steps."""
    scale = random(50, seed=8).abs() / 20
    x = (torch.arange(-100, 100) + 0.5) * scale[:, None]
    in_two_steps = torch.round(x * (1 / scale)[:, None])
    assert (torch.round(x / scale[:, None]) != in_two_steps).any(), "no division shows here"
    assert (torch.round(x.double() * (1 / scale).double()[:, None]) != in_two_steps).any(), (
        "no fused product shows here"
    )
    codes = cuda_int8.quantize_static(*on_device(x, scale, None), -128, 127)
    assert_same(codes.cpu(), in_two_steps.to(torch.int8))


@pytest.mark.parametrize("shape", [(1, 5), (37,), (2, 3, 70), (3, 5000)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bits", [3, 8])
@schemes
def test_grids_of_rows(shape, dtype, bits, symmetric):
    x = random(*shape, dtype=dtype)
    check_dynamic(x, (-1,), bits, symmetric, "linear")


@pytest.mark.parametrize("layout", LAYOUTS)
@schemes
def test_grids_of_samples(layout, symmetric):
    check_dynamic(LAYOUTS[layout](random(4, 6, 5, 7)), (1, 2, 3), 8, symmetric, "conv2d")


@pytest.mark.parametrize(
    "shape", [(2, 3, 5), (3, 5, 2, 3, 4), (1, 3, 70, 90), (1, 17, 131, 131), (2, 1, 600, 500)], ids=str
)
def test_grids_of_large_and_of_other_samples(shape):
    check_dynamic(random(*shape), tuple(range(1, len(shape))), 8, False, f"conv{len(shape) - 2}d")


@schemes
def test_grids_of_extreme_rows(symmetric):
    """All zero, too narrow for 1 / scale, of one sign, and of a single value."""
    x = torch.stack(
        [torch.zeros(8), torch.full((8,), 1e-42), random(8).abs(), -random(8).abs(), torch.full((8,), 3e38)]
    )
    check_dynamic(x, (-1,), 8, symmetric, "linear")


def check_dynamic(x: Tensor, axes: tuple[int, ...], bits: int, symmetric: bool, kind: str) -> None:
    codes, scale, zero_point = cuda_int8.quantize_dynamic(x.to(DEVICE), bits, symmetric, kind)
    grid = make_grid(x.amin(axes, keepdim=True).float(), x.amax(axes, keepdim=True).float(), bits, symmetric)
    assert_same(scale.cpu(), grid.scale, "scales")
    if symmetric:
        assert zero_point is None
    else:
        assert_same(zero_point.cpu(), grid.zero_point, "zero points")
    assert_same(codes.cpu(), quantize(x, grid), "codes")


# Products

WEIGHTS = {"w-symmetric": (8, True), "w-affine": (8, False), "w-affine-4-bit": (4, False)}
weight_schemes = pytest.mark.parametrize("weights", WEIGHTS)
input_schemes = pytest.mark.parametrize("symmetric", [True, False], ids=["a-symmetric", "a-affine"])


class Layer:
    """Random integer weights, and inputs to go with them."""

    def __init__(self, weights: str, shape: tuple[int, ...], bias: bool = True):
        bits, symmetric = WEIGHTS[weights]
        code_max = 2 ** (bits - 1) - 1
        outputs = shape[0]
        self.codes = integers(-code_max - (not symmetric), code_max, *shape, seed=1).to(torch.int8)
        self.scale = random(outputs, seed=2).abs() / 100
        self.zero_point = None if symmetric else integers(-code_max - 1, code_max, outputs, seed=3)
        self.bias = random(outputs, seed=4) if bias else None
        self.packed = cuda_int8.pack(*on_device(self.codes, self.scale, self.zero_point, self.bias))

    def expected(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None, **options) -> tuple[Tensor, Tensor]:
        """The output in float64, for grids that broadcast against `codes`, and its magnitude before it is added up."""
        dims = codes.dim() - 2 if self.codes.dim() > 2 else 0
        along = (-1, *[1] * (self.codes.dim() - 1))
        centred = codes.double() - (0 if zero_point is None else zero_point.double())
        weights = self.codes.double() - (0 if self.zero_point is None else self.zero_point.view(along))
        total = CONVOLUTIONS[dims](centred, weights, **options) if dims else centred @ weights.T
        channel = along[:-1] if dims else (-1,)
        y = total * scale.double() * self.scale.double().view(channel)
        bias = torch.zeros(1) if self.bias is None else self.bias.double().view(channel)
        return y + bias, y.abs() + bias.abs()


def on_device(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(DEVICE) for t in tensors]


def inputs(shape: tuple[int, ...], symmetric: bool, grids: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    codes = integers(-127 if symmetric else -128, 127, *shape, seed=5).to(torch.int8)
    return codes, random(*grids, seed=6).abs() / 50, None if symmetric else integers(-128, 127, *grids, seed=7)


def check(y: Tensor, expected: Tensor, magnitude: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Within four roundings to fp32 and one to `dtype`, each value by its own measure."""
    assert y.dtype == dtype
    rounding = 2**-22
    if dtype != torch.float32:
        # Triton's interpreter cuts off what does not fit bf16; the device rounds to nearest.
        cut_off = dtype == torch.bfloat16 and DEVICE == "cpu"
        rounding += torch.finfo(dtype).eps / (1 if cut_off else 2)
    assert_close((y.cpu().double() - expected) / (magnitude + 1e-30), torch.zeros_like(expected), rounding)


@pytest.mark.parametrize(("shape", "outputs"), [((1, 33), 5), ((37,), 9), ((4, 3, 64), 33), ((70, 100), 40)], ids=str)
@pytest.mark.parametrize("grids", ["tensor", "row", "first-axis"])
@weight_schemes
@input_schemes
def test_linear(shape, outputs, grids, weights, symmetric):
    layer = Layer(weights, (outputs, shape[-1]))
    half = shape[0] // 2 if shape[0] % 2 == 0 and len(shape) > 1 else 1
    groups = {"tensor": (1,), "row": (*shape[:-1], 1), "first-axis": (half,)}
    codes, scale, zero_point = inputs(shape, symmetric, groups[grids])
    y = cuda_int8.linear(*on_device(codes, scale, zero_point), layer.packed, torch.float32)
    if len(scale) > 1 and scale.dim() == 1:
        scale, zero_point = (None if t is None else reshaped(t, codes) for t in (scale, zero_point))
    check(y, *layer.expected(codes, scale, zero_point))


# name: ((samples, in, sizes...), (out, kernel...), options)
CONVOLVED = {
    "3x3": ((3, 5, 7, 6), (6, 3, 3), {}),
    "3x3-padding": ((2, 5, 7, 6), (6, 3, 3), {"padding": 1}),
    "3x3-stride-padding": ((2, 33, 8, 7), (35, 3, 3), {"stride": 2, "padding": 1}),
    "3x3-dilation-padding": ((2, 5, 8, 7), (6, 3, 3), {"dilation": 2, "padding": 2}),
    "3x2-uneven": ((2, 4, 9, 6), (5, 3, 2), {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 3)}),
    "1x1": ((2, 32, 5, 4), (7, 1, 1), {}),
    "1x1-stride": ((2, 32, 5, 4), (7, 1, 1), {"stride": 2}),
    "same": ((2, 5, 7, 6), (6, 2, 3), {"padding": "same"}),
    "valid": ((1, 5, 4, 3), (6, 4, 3), {"padding": "valid"}),
    "1d": ((3, 4, 9), (6, 3), {"padding": 1, "stride": 2}),
    "3d": ((2, 3, 3, 5, 4), (5, 3, 2, 2), {"padding": (1, 0, 1), "stride": (2, 1, 2)}),
    "3d-temporal": ((1, 6, 5, 2, 3), (5, 3, 1, 1), {"padding": (1, 0, 0), "dilation": (2, 1, 1)}),
}


@pytest.mark.parametrize("name", CONVOLVED)
@weight_schemes
@input_schemes
def test_convolution(name, weights, symmetric):
    shape, (outputs, *kernel), options = CONVOLVED[name]
    layer = Layer(weights, (outputs, shape[1], *kernel), bias=name != "1x1")
    codes, scale, zero_point = inputs(shape, symmetric, (shape[0], *[1] * (len(shape) - 1)))
    y = cuda_int8.convolve(*on_device(codes, scale, zero_point), layer.packed, torch.float32, **options)
    check(y, *layer.expected(codes, scale, zero_point, **options))
    assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "every-other"])
def test_convolution_of_any_layout_and_groups_of_samples(groups, layout):
    layer = Layer("w-symmetric", (6, 3 if layout == "every-other" else 6, 3, 3))
    codes, scale, zero_point = inputs((4, 6, 5, 7), False, (groups,))
    codes = LAYOUTS[layout](codes)
    for padding in (0, 1):
        y = cuda_int8.convolve(*on_device(codes, scale, zero_point), layer.packed, torch.float32, padding=padding)
        check(y, *layer.expected(codes, reshaped(scale, codes), reshaped(zero_point, codes), padding=padding))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias_dtype", FLOATS, ids=str)
def test_outputs_and_biases_in_any_dtype(dtype, bias_dtype):
    layer = Layer("w-symmetric", (9, 20))
    layer.bias = layer.bias.to(bias_dtype)
    packed = cuda_int8.pack(*on_device(layer.codes, layer.scale, None, layer.bias))
    codes, scale, zero_point = inputs((5, 20), False, (5, 1))
    y = cuda_int8.linear(*on_device(codes, scale, zero_point), packed, dtype)
    check(y, *layer.expected(codes, scale, zero_point), dtype)


def test_linear_of_codes_that_are_not_contiguous():
    layer = Layer("w-affine", (5, 10), bias=False)
    codes, scale, zero_point = inputs((10, 6), False, (1,))
    y = cuda_int8.linear(*on_device(codes.T, scale, zero_point), layer.packed, torch.float32)
    check(y, *layer.expected(codes.T, scale, zero_point))


@pytest.mark.parametrize(("code", "zero"), [(-128, 127), (127, -128)])
def test_the_longest_sum_of_the_largest_products_fits(code, zero):
    """255 * 255 * 2^15, of either sign, with every term of the expansion at its largest."""
    products = cuda_int8.LONGEST_SUM
    codes, zeros = torch.full((2, products), code, dtype=torch.int8), torch.full((1,), zero, dtype=torch.int32)
    weights = torch.stack([codes[0], -1 - codes[0]])  # the other end of the codes
    packed = cuda_int8.pack(*on_device(weights, torch.ones(2), torch.tensor([zero, -1 - zero], dtype=torch.int32)))
    y = cuda_int8.linear(*on_device(codes, torch.ones(1), zeros), packed, torch.float32)
    assert y.tolist() == [[255.0**2 * products, -(255.0**2) * products]] * 2


def test_sums_within_24_bits_come_out_exactly():
    layer = Layer("w-affine", (33, 40), bias=False)
    layer.scale = torch.full((33,), 0.25)
    packed = cuda_int8.pack(*on_device(layer.codes, layer.scale, layer.zero_point))
    codes, _, zero_point = inputs((35, 40), False, (35, 1))
    scale = torch.full((35, 1), 0.5)
    y = cuda_int8.linear(*on_device(codes, scale, zero_point), packed, torch.float32)
    assert_same(y.cpu(), layer.expected(codes, scale, zero_point)[0].float())


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)], ids=str)
def test_nothing_in_nothing_out(shape):
    layer = Layer("w-symmetric", (5, 8))
    codes, scale, _ = cuda_int8.quantize_dynamic(torch.zeros(shape, device=DEVICE), 8, True, "linear")
    y = cuda_int8.linear(codes, torch.ones(1, device=DEVICE), None, layer.packed, torch.float32)
    assert y.shape == (*shape[:-1], 5)
    assert scale.shape == (*shape[:-1], 1)


# As torch's operators


def operator_arguments() -> dict[str, tuple]:
    x, volume = random(3, 4, 10), random(2, 5, 6, 7)
    layer, convolution = Layer("w-affine", (6, 10)), Layer("w-symmetric", (6, 5, 3, 3), bias=False)
    grids = on_device(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, 2, 3], dtype=torch.int32))
    last = volume.contiguous(memory_format=torch.channels_last)
    rows = inputs((3, 4, 10), False, (12,))
    pixels = inputs((2, 5, 6, 7), False, (2,))
    options = ([2, 1], [1, 0, 1, 2], [1, 2], torch.bfloat16)
    return {
        "quantize": (int8_ops.quantize, (*on_device(x), *grids, -128, 127)),
        "quantize-channels-last": (int8_ops.quantize, (*on_device(last), grids[0][:2], None, -128, 127)),
        "quantize-strided": (int8_ops.quantize, (*on_device(volume[:, ::2]), grids[0][:1], None, -128, 127)),
        "rows": (int8_ops.quantize_rows, (*on_device(x.transpose(0, 1)), -128, 127, False)),
        "samples": (int8_ops.quantize_samples, (*on_device(last), -127, 127, True)),
        "linear": (int8_ops.linear, (*on_device(*rows), *factors(layer), 12, torch.float16)),
        "convolve": (int8_ops.convolve, (*on_device(*pixels), *factors(convolution), *options)),
    }


def factors(layer: Layer) -> tuple[Tensor | None, ...]:
    packed = layer.packed
    return packed.codes, packed.scale, packed.zero_point, packed.sums, packed.bias


@pytest.mark.parametrize("name", operator_arguments())
def test_operators_are_what_they_tell_the_compiler(name):
    """Schema, shapes and strides of the fake ones, tracing with fixed and with symbolic sizes."""
    operator, arguments = operator_arguments()[name]
    torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_compiled_layers_give_the_same(symmetric):
    layer, convolution = Layer("w-affine", (8, 6)), Layer("w-symmetric", (6, 5, 3, 3))

    def block(x: Tensor) -> Tensor:
        codes, scale, zero_point = cuda_int8.quantize_dynamic(x, 8, symmetric, "conv2d")
        y = cuda_int8.convolve(codes, scale, zero_point, convolution.packed, torch.float32, padding=1)
        codes, scale, zero_point = cuda_int8.quantize_dynamic(y.movedim(1, -1), 8, symmetric, "linear")
        y = torch.relu(cuda_int8.linear(codes, scale, zero_point, layer.packed, torch.float32))
        return cuda_int8.quantize_static(y, scale[0, 0, 0], None, -127, 127)

    x = random(2, 5, 6, 7).to(DEVICE)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager" if DEVICE == "cpu" else "inductor")
    assert_same(compiled(x).cpu(), block(x).cpu())
