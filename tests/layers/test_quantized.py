"""Quantized layers against an explicit integer computation: codes, zero points and scales, nothing else.

The reference below multiplies int64 codes and never sees a dequantized number, so it says what an
integer engine would compute; the layer may differ from it by floating-point rounding only.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.inputs import DynamicPerToken, StaticPerTensor
from qvd_core.layers.quantized import QuantizedLayer, weight_grid
from qvd_core.quantizers.uniform import make_grid
from tests.closeness import assert_close, assert_same

STATIC, DYNAMIC = "static_per_tensor", "dynamic_per_token"

# name: (kind, layer, shape of one input)
LAYERS = {
    "linear": ("linear", lambda: nn.Linear(12, 9), (3, 5, 12)),
    "linear-no-bias": ("linear", lambda: nn.Linear(12, 9, bias=False), (7, 12)),
    "conv1d": ("conv1d", lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "conv2d": ("conv2d", lambda: nn.Conv2d(4, 6, 3), (2, 4, 8, 7)),
    "conv2d-stride-padding": ("conv2d", lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 7)),
    "conv2d-groups-dilation": (
        "conv2d",
        lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2, bias=False),
        (2, 4, 8, 7),
    ),
    "conv2d-same": ("conv2d", lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 7)),
    "conv2d-1x1": ("conv2d", lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    "conv3d": ("conv3d", lambda: nn.Conv3d(3, 5, (1, 2, 2), stride=(1, 2, 2)), (2, 3, 3, 4, 4)),
    "conv3d-padding": ("conv3d", lambda: nn.Conv3d(3, 5, 3, padding=(1, 0, 1)), (2, 3, 3, 4, 4)),
}
layers = pytest.mark.parametrize("name", LAYERS)
ranges = pytest.mark.parametrize("activation_range", [STATIC, DYNAMIC], ids=["static", "dynamic"])
weight_schemes = pytest.mark.parametrize("weights_symmetric", [True, False], ids=["w-symmetric", "w-affine"])
input_schemes = pytest.mark.parametrize("inputs_symmetric", [True, False], ids=["a-symmetric", "a-affine"])


def build(name: str) -> tuple[str, nn.Module, Tensor]:
    kind, make, shape = LAYERS[name]
    torch.manual_seed(len(name))
    return kind, make().requires_grad_(False).eval(), torch.randn(shape) + 0.4


def input_quantizer(form: ActivationFormat, kind: str) -> nn.Module:
    if form.range == DYNAMIC:
        return DynamicPerToken(form, kind)
    # Narrower than the data, so that clamping is exercised too.
    return StaticPerTensor(torch.tensor(-1.3), torch.tensor(1.7), form)


def integer_layer(original: nn.Module, kind: str, x: Tensor, weights: WeightFormat, inputs: ActivationFormat) -> Tensor:
    """What integer arithmetic gives: sum over (input code - zero point) * (weight code - zero point), rescaled."""
    per_channel = tuple(range(1, original.weight.dim()))
    weight = original.weight
    weight_codes, weight_zero, weight_scale, _ = codes_of(weight, per_channel, weights.bits, weights.symmetric)
    if inputs.range == STATIC:
        grid = make_grid(torch.tensor(-1.3), torch.tensor(1.7), inputs.bits, inputs.symmetric)
        codes, zero, scale = grid_codes(x, grid)
    else:
        axes = (-1,) if kind == "linear" else tuple(range(1, x.dim()))
        codes, zero, scale, _ = codes_of(x, axes, inputs.bits, inputs.symmetric)
    # Padding adds exact zeros, hence codes equal to the zero point: centre first, then pad with 0.
    centred, centred_weight = codes - zero, weight_codes - weight_zero
    assert centred.dtype == centred_weight.dtype == torch.int64
    if kind == "linear":
        total = centred @ centred_weight.T
        channel_scale, bias_shape = weight_scale.flatten(), (-1,)
    else:
        total = integer_convolution(original, kind, centred, centred_weight)
        channel_scale = weight_scale.reshape(1, -1, *[1] * (x.dim() - 2))
        bias_shape = (1, -1, *[1] * (x.dim() - 2))
    result = total.double() * scale.double() * channel_scale.double()
    return result if original.bias is None else result + original.bias.double().reshape(bias_shape)


def codes_of(x: Tensor, axes: tuple[int, ...], bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, object]:
    grid = make_grid(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True), bits, symmetric)
    return (*grid_codes(x, grid), grid)


def grid_codes(x: Tensor, grid) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.round(x / grid.scale) + grid.zero_point
    return codes.clamp(grid.code_min, grid.code_max).to(torch.int64), grid.zero_point.to(torch.int64), grid.scale


def integer_convolution(layer: nn.Module, kind: str, codes: Tensor, weight: Tensor) -> Tensor:
    """Convolution as a product of int64 matrices, over windows cut out by unfolding each axis."""
    dims = int(kind[-2])
    kernel = layer.kernel_size
    padding = layer.padding
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, kernel, strict=True))
    codes = F.pad(codes, [side for p in reversed(padding) for side in (p, p)])
    for axis in range(dims):
        reach = layer.dilation[axis] * (kernel[axis] - 1) + 1
        codes = codes.unfold(2 + axis, reach, layer.stride[axis])
    # Now [N, C, out..., reach...]: keep every dilation-th position of each window.
    codes = codes[(..., *[slice(None, None, d) for d in layer.dilation])]
    outputs = []
    for group in range(layer.groups):
        own_in, own_out = codes.shape[1] // layer.groups, len(weight) // layer.groups
        window = codes[:, group * own_in : (group + 1) * own_in]
        kernels = weight[group * own_out : (group + 1) * own_out]
        window = window.movedim(1, 1 + dims).flatten(1 + dims)  # [N, out..., C * kernel]
        outputs.append((window @ kernels.flatten(1).T).movedim(-1, 1))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("name", [name for name in LAYERS if "conv" in name])
def test_integer_reference_is_the_original_layer_on_integers(name):
    """Guards the reference itself: on whole numbers it must equal torch exactly."""
    kind, original, x = build(name)
    codes, weight = (10 * x).round().long(), (10 * original.weight).round().long()
    original.weight.copy_(weight)
    original.bias = None
    assert_close(integer_convolution(original, kind, codes, weight), original(codes.float()), 0.0, name)


@layers
@ranges
@weight_schemes
@input_schemes
def test_layer_equals_integer_computation(name, activation_range, weights_symmetric, inputs_symmetric):
    kind, original, x = build(name)
    weights = WeightFormat(4, weights_symmetric)
    inputs = ActivationFormat(6, activation_range, inputs_symmetric)
    layer = QuantizedLayer(original, kind, weights, input_quantizer(inputs, kind))
    expected = integer_layer(original, kind, x, weights, inputs)
    assert_close(layer(x), expected, 2e-6 * float(expected.abs().max()), name)
    assert (layer(x) - original(x)).abs().max() > 1e-3, "nothing was quantized"


@pytest.mark.parametrize("bits", range(2, 9))
@weight_schemes
def test_codes_are_int8_in_the_original_shape(bits, weights_symmetric):
    kind, original, _ = build("conv2d-groups-dilation")
    layer = QuantizedLayer(original, kind, WeightFormat(bits, weights_symmetric), None)
    assert layer.codes.dtype == torch.int8
    assert layer.codes.shape == original.weight.shape
    assert layer.weight_scale.shape == (6, 1, 1, 1)
    grid = weight_grid(original.weight, WeightFormat(bits, weights_symmetric))
    assert layer.codes.min() >= grid.code_min
    assert layer.codes.max() <= grid.code_max
    restored = (layer.codes.double() - layer.weight_zero_point.double()) * layer.weight_scale.double()
    assert_close(layer.weight, restored, 1e-7, "dequantized weights")


@layers
def test_weights_alone_and_inputs_alone(name):
    kind, original, x = build(name)
    form = ActivationFormat(16, DYNAMIC)
    only_inputs = QuantizedLayer(original, kind, None, DynamicPerToken(form, kind))
    assert only_inputs.codes is None
    assert only_inputs.weight.data_ptr() == original.weight.data_ptr()
    assert_close(only_inputs(x), original(x), 2e-3, "16-bit inputs, float weights")
    only_weights = QuantizedLayer(original, kind, WeightFormat(8), None)
    assert_close(only_weights(x), original(x), 0.1, "8-bit weights, float inputs")
    assert not torch.equal(only_weights(x), original(x))


def test_bias_is_the_original_tensor():
    kind, original, _ = build("linear")
    assert QuantizedLayer(original, kind, WeightFormat(4), None).bias.data_ptr() == original.bias.data_ptr()


def test_input_may_be_passed_by_name():
    kind, original, x = build("linear")
    layer = QuantizedLayer(original, kind, WeightFormat(4), DynamicPerToken(ActivationFormat(4, DYNAMIC), kind))
    assert_same(layer(input=x), layer(x))


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_paddings_than_zeros(mode):
    torch.manual_seed(0)
    original = nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode=mode)
    x = torch.randn(2, 4, 8, 7)
    layer = QuantizedLayer(original, "conv2d", None, DynamicPerToken(ActivationFormat(16, DYNAMIC), "conv2d"))
    assert_close(layer(x), original(x), 2e-3, mode)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_dynamic_ranges_belong_to_one_token_each(symmetric):
    """A loud token must not coarsen a quiet one; in a convolution a token is a sample."""
    form = ActivationFormat(8, DYNAMIC, symmetric)
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    loud = x.clone()
    loud[0, 0] *= 1000
    tokens = DynamicPerToken(form, "linear")
    assert_same(tokens(loud)[0, 1:], tokens(x)[0, 1:], "other tokens")
    samples = DynamicPerToken(form, "conv1d")
    assert_same(samples(loud)[1], samples(x)[1], "the other sample")
    assert not torch.equal(samples(loud)[0, 1:], samples(x)[0, 1:])


@ranges
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_bf16_inputs_lose_only_their_own_rounding(activation_range, bits):
    """Grids are computed in fp32: in bf16 itself, codes beyond 256 could not even be told apart."""
    form = ActivationFormat(bits, activation_range)
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).clamp(-1.3, 1.7).to(torch.bfloat16)
    restored = input_quantizer(form, "linear")(x)
    assert restored.dtype == torch.bfloat16
    span = (x.amax(-1) - x.amin(-1)).float().max().item() if activation_range == DYNAMIC else 3.0
    half_scale = span / (2**bits - 1) / 2
    assert_close(restored, x, half_scale + 2**-8 * 1.7, f"{bits} bits")
    exact = (restored == x).float().mean()
    assert bits < 16 or exact > 0.9, f"16 bits hold bf16 values of this range, but only {exact:.0%} came back"


def test_bf16_layer_keeps_its_dtype():
    kind, original, x = build("conv2d-stride-padding")
    original, x = original.to(torch.bfloat16), x.to(torch.bfloat16)
    layer = QuantizedLayer(original, kind, WeightFormat(8), DynamicPerToken(ActivationFormat(8, DYNAMIC), kind))
    assert layer.weight.dtype == torch.bfloat16
    assert layer(x).dtype == torch.bfloat16
    assert_close(layer(x), original(x), 0.1, "bf16 layer")


def test_diffusers_finds_dtype_and_device_in_parameters():
    """Wan's time embedding asks `next(iter(module.parameters())).dtype` of layers that may be quantized."""
    kind, original, _ = build("linear-no-bias")
    layer = QuantizedLayer(original.to(torch.bfloat16), kind, WeightFormat(8), None)
    assert [p.dtype for p in layer.parameters()] == [torch.bfloat16]
    assert not any(p.requires_grad for p in layer.parameters())
