"""Int8 layers on the CPU against float64 sums of codes, and against the simulated layers they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qvd_core.engines import cpu_int8
from qvd_core.engines.int8_layer import SplitLayer, centred_codes, int8_layer
from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.inputs import StaticPerTensor
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.quantizers.channel_transform import ChannelTransform
from tests.closeness import assert_close, assert_same
from tests.engines.int8_cases import GRANULARITIES, LAYERS, Case, assert_within, build, formats, suited

pytestmark = [
    pytest.mark.skipif(cpu_int8.unavailable() is not None, reason=f"{cpu_int8.unavailable()}"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]
PLAIN = ["linear", "conv1d", "conv2d-stride-padding", "conv2d-same-asymmetric", "conv3d"]
TRANSFORMED = ["linear", "conv1d", "conv2d-stride-padding", "conv2d-1x1", "conv2d-reflect", "conv3d-same-asymmetric"]


def converted(case: Case) -> nn.Module:
    return int8_layer(cpu_int8, case.layer, case.quantizer)


def check(case: Case) -> None:
    what = f"{case.weights}, inputs of {case.bits} bits{', symmetric' if case.symmetric else ''}"
    given = converted(case)(case.x)
    expected, allowed = case.expected()
    assert given.dtype == case.dtype
    assert_within(given, expected, allowed, what)
    largest = expected.abs().max()
    if case.dtype == torch.float32:
        limit = 3e-5 * (2 ** (8 - case.bits) if case.offset else 1)  # small codes, offset by as much as large ones
        assert allowed.max() < limit * largest, f"{what}: a tolerance of {allowed.max() / largest:.2g} shows too little"
        assert_close(given, case.layer(case.x), 3e-5 * largest, f"{what}, simulated")
    else:  # whose weights are rounded to bf16
        assert_close(given, case.layer(case.x), 0.03 * largest, f"{what}, simulated")


@pytest.mark.parametrize(("name", "granularity"), suited(LAYERS, GRANULARITIES))
def test_layers_give_the_sums_of_their_codes(name, granularity):
    for weights, bits, symmetric in formats(name):
        check(Case(name, granularity, weights, bits, symmetric))


@pytest.mark.parametrize(
    ("name", "granularity"), suited(TRANSFORMED, ["tensor", "frame", "token", "split", "split-token"])
)
@pytest.mark.parametrize("moved", ["shift", "scale", "both"])
def test_layers_that_transform_their_input_themselves(name, granularity, moved):
    kind, _, x = build(name)
    channels = x.shape[-1 if kind == "linear" else 1]
    shift = torch.linspace(-0.8, 1.1, channels) * (moved != "scale")
    scale = torch.linspace(0.4, 2.3, channels) if moved != "shift" else torch.ones(channels)
    for weights, bits, symmetric in formats(name)[::3]:
        check(Case(name, granularity, weights, bits, symmetric, ChannelTransform(shift, scale)))


@pytest.mark.parametrize(("name", "granularity"), suited(PLAIN, GRANULARITIES))
def test_layers_in_bf16(name, granularity):
    for weights, bits, symmetric in formats(name)[::5]:
        check(Case(name, granularity, weights, bits, symmetric, dtype=torch.bfloat16))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_codes_are_those_of_simulation(granularity, bits, symmetric, dtype):
    """Exactly; the simulated layer's input, which they stand for, too."""
    case = Case("conv2d", granularity, WeightFormat(8), bits, symmetric, dtype=dtype)
    expected, scale, zero_point = case.codes()
    split = GRANULARITIES[granularity].split
    parts = list(zip(case.x.split(2, 1), case.quantizer.parts(), strict=True)) if split else [(case.x, case.quantizer)]
    made = [cpu_int8.Codes(quantizer)(x) for x, quantizer in parts]
    assert_same(torch.cat([codes for codes, _ in made], 1), expected, "codes")
    for (part, grid), at in zip(made, (slice(2), slice(2, None)) if split else (slice(None),), strict=True):
        assert_same(grid.scale.expand(part.shape), scale[:, at], "scales")
        assert_close(grid.zero_point.expand(part.shape), zero_point[:, at], 0, "zero points")
    assert_same(case.quantizer(case.x), ((expected.float() - zero_point) * scale).to(dtype), "simulated input")


def test_values_halfway_between_codes_fall_as_in_simulation():
    quantizer = StaticPerTensor(torch.tensor([-1.0]), torch.tensor([1.55]), ActivationFormat(8))
    x = (torch.arange(-130, 130) + 0.5) * quantizer.scale
    codes, grid = cpu_int8.Codes(quantizer)(x)
    restored = (codes.float() - grid.zero_point) * grid.scale
    assert_same(restored, quantizer(x))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_inputs_in_any_memory_layout(symmetric):
    case = Case("conv2d-stride-padding", "token", WeightFormat(8, symmetric=False), 8, symmetric)
    layer = converted(case)
    expected = layer(case.x)
    assert_same(layer(case.x.contiguous(memory_format=torch.channels_last)), expected, "channels last")
    assert_same(layer(case.x.transpose(2, 3).contiguous().transpose(2, 3)), expected, "transposed")
    assert_same(layer(torch.cat([case.x, case.x], 1)[:, :4]), expected, "a slice")
    assert_same(layer(input=case.x), expected, "by name")


def test_a_linear_layer_of_one_row_and_of_none():
    case = Case("linear", "tensor", WeightFormat(8), 8, False)
    layer = converted(case)
    assert_close(layer(case.x[0, 0]), layer(case.x)[0, 0], 1e-6)
    assert layer(case.x[:, :0]).shape == (6, 0, 9)


def test_an_input_of_any_size_after_another():
    """Nothing about sizes is remembered: other samples, heights and widths through the same layer."""
    case = Case("conv2d-stride-padding", "token", WeightFormat(8, symmetric=False), 8, False)
    layer = converted(case)
    for shape in ((1, 4, 9, 3), (2, 4, 3, 8), (5, 4, 1, 1), (1, 4, 9, 3)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert_close(layer(x), case.layer(x), 1e-5 * case.layer(x).abs().max(), str(shape))


def test_the_longest_sum_taken_is_exact():
    """2^15 products of the largest codes, of either sign; a larger one is refused."""
    products = 2**15
    original = nn.Linear(products, 2, bias=False)
    original.weight.data = torch.stack([torch.full((products,), 127.0), torch.full((products,), -127.0)])
    quantizer = StaticPerTensor(torch.tensor([0.0]), torch.tensor([255.0]), ActivationFormat(8))
    layer = QuantizedLayer(original, "linear", WeightFormat(8), quantizer)
    given = int8_layer(cpu_int8, layer, quantizer)(torch.full((1, products), 255.0))
    assert given.tolist() == [[255.0 * 127 * products, -255.0 * 127 * products]]
    assert cpu_int8.takes("linear", 1, products, True) is None
    assert "32769 products could overflow" in cpu_int8.takes("linear", 1, products + 1, False)


def test_grouped_convolutions_with_zero_points_are_refused():
    assert "zero points" in cpu_int8.takes("conv2d", 2, 9, True)
    assert cpu_int8.takes("conv2d", 2, 9, False) is None
    assert cpu_int8.takes("conv2d", 1, 9, True) is None


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_go_into_the_codes_where_these_fit(bits):
    _, original, _ = build("conv2d")
    layer = QuantizedLayer(original, "conv2d", WeightFormat(bits, symmetric=False), None)
    centred = centred_codes(layer.codes, layer.weight_zero_point)
    assert (centred is None) is (bits == 8)
    if centred is not None:
        assert_close(centred, layer.codes.int() - layer.weight_zero_point, 0)


@pytest.mark.parametrize("granularity", ["tensor", "split"])
def test_copies_compute_the_same_and_share_the_weights(granularity):
    case = Case("conv2d", granularity, WeightFormat(8, symmetric=False), 8, False)
    layer = converted(case)
    twin = copy.deepcopy(layer)
    assert_same(twin(case.x), layer(case.x))
    if isinstance(layer, SplitLayer):
        layer, twin = layer.first, twin.first
    assert twin.prepared is layer.prepared
    assert twin.codes is not layer.codes


def test_models_find_the_dtype_of_a_layer():
    for granularity in ("tensor", "split"):
        layer = converted(Case("conv2d", granularity, WeightFormat(8), 8, False, dtype=torch.bfloat16))
        assert next(layer.parameters()).dtype == layer.weight.dtype == torch.bfloat16
