"""Channel transformations: undone by the weights, whatever the layer, padding included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qvd_core.formats import WeightFormat
from qvd_core.layers.quantized import QuantizedLayer, weight_grid
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.quantizers.uniform import dequantize, quantize
from tests.closeness import assert_close, assert_same

# name: (kind, layer, shape of one input)
LAYERS = {
    "linear": ("linear", lambda: nn.Linear(5, 7), (3, 4, 5)),
    "linear-no-bias": ("linear", lambda: nn.Linear(5, 7, bias=False), (6, 5)),
    "conv1d": ("conv1d", lambda: nn.Conv1d(5, 7, 3), (2, 5, 9)),
    "conv1d-no-bias-padding-stride": ("conv1d", lambda: nn.Conv1d(5, 7, 3, 2, 1, bias=False), (2, 5, 9)),
    "conv2d": ("conv2d", lambda: nn.Conv2d(5, 7, 3), (2, 5, 8, 7)),
    "conv2d-1x1": ("conv2d", lambda: nn.Conv2d(5, 7, 1), (2, 5, 8, 7)),
    "conv2d-padding": ("conv2d", lambda: nn.Conv2d(5, 7, 3, padding=1), (2, 5, 8, 7)),
    "conv2d-stride-dilation": (
        "conv2d",
        lambda: nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(2, 3), dilation=(2, 3), bias=False),
        (2, 5, 8, 7),
    ),
    "conv2d-same": ("conv2d", lambda: nn.Conv2d(5, 7, (3, 5), padding="same"), (2, 5, 8, 7)),
    "conv2d-valid": ("conv2d", lambda: nn.Conv2d(5, 7, 3, padding="valid"), (2, 5, 8, 7)),
    "conv2d-reflect": ("conv2d", lambda: nn.Conv2d(5, 7, 3, padding=2, padding_mode="reflect"), (2, 5, 8, 7)),
    "conv2d-circular": ("conv2d", lambda: nn.Conv2d(5, 7, 3, padding=1, padding_mode="circular"), (2, 5, 8, 7)),
    "conv2d-replicate": ("conv2d", lambda: nn.Conv2d(5, 7, 3, padding=(1, 2), padding_mode="replicate"), (2, 5, 8, 7)),
    "conv3d": ("conv3d", lambda: nn.Conv3d(5, 7, (1, 2, 2), stride=(1, 2, 2)), (2, 5, 3, 4, 4)),
    "conv3d-no-bias-padding": ("conv3d", lambda: nn.Conv3d(5, 7, 3, padding=(1, 0, 1), bias=False), (2, 5, 3, 4, 4)),
}
layers = pytest.mark.parametrize("name", LAYERS)


def build(name: str) -> tuple[str, nn.Module, Tensor]:
    kind, make, shape = LAYERS[name]
    torch.manual_seed(len(name))
    return kind, make().requires_grad_(False), 3 * torch.randn(shape) + 1


def some_transform(channels: int = 5, seed: int = 0) -> ChannelTransform:
    generator = torch.Generator().manual_seed(seed)
    shift = 4 * torch.randn(channels, generator=generator)
    return ChannelTransform(shift, torch.exp(torch.randn(channels, generator=generator)))


@layers
@pytest.mark.parametrize("parts", ["both", "shift", "scale"])
def test_a_layer_that_transforms_its_input_is_the_layer_itself(name, parts):
    """Padded zeros are transformed like the rest: (0 - shift) / scale."""
    kind, original, x = build(name)
    both = some_transform()
    plain = ChannelTransform(torch.zeros(5), torch.ones(5))
    transform = {
        "both": both,
        "shift": ChannelTransform(both.shift, plain.scale),
        "scale": ChannelTransform(plain.shift, both.scale),
    }[parts]
    layer = QuantizedLayer(original, kind, None, None, transform, transform_here=True)
    expected = copy.deepcopy(original).double()(x.double())
    assert_close(layer(x), expected, 5e-5, name)
    assert not torch.equal(layer.weight, original.weight) or parts == "shift"


@layers
def test_a_layer_whose_input_comes_transformed_is_the_layer_itself(name):
    """As if the norm before it had made the transformation; so without padding, whose zeros no norm sees."""
    kind, original, x = build(name)
    if kind != "linear" and any(original._reversed_padding_repeated_twice):
        return
    transform = some_transform(seed=1)
    layer = QuantizedLayer(original, kind, None, None, transform)
    moved = transform.apply(x, -1 if kind == "linear" else 1)
    assert_close(layer(moved), copy.deepcopy(original).double()(x.double()), 5e-5, name)


@layers
def test_fold_is_the_formula_entry_by_entry(name):
    """W'[o, c, ...] = W[o, c, ...] s_c and b'[o] = b[o] + sum over c and taps of W[o, c, tap] z_c, in fp64."""
    _, original, _ = build(name)
    transform = some_transform(seed=2)
    weight, bias = transform.fold(original.weight, original.bias)
    assert bias is not None
    for out in range(7):
        expected = 0.0 if original.bias is None else float(original.bias[out])
        for channel in range(5):
            taps = original.weight[out, channel].double()
            expected += float(taps.sum()) * float(transform.shift[channel])
            scaled = taps * float(transform.scale[channel])
            assert_close(weight[out, channel], scaled, 1e-6 * float(scaled.abs().max()), "weight")
        assert float(bias[out]) == pytest.approx(expected, abs=1e-5)


def test_apply_is_the_formula_along_any_axis():
    transform = some_transform()
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    moved = transform.apply(x, 1)
    for channel in range(5):
        expected = (x[:, channel].double() - transform.shift[channel].item()) / transform.scale[channel].item()
        assert_close(moved[:, channel], expected, 1e-6 * float(expected.abs().max()), "axis 1")
    assert_same(transform.apply(x.transpose(1, 2)), moved.transpose(1, 2), "last axis")


def test_half_precision_stays_half_precision():
    transform = some_transform()
    original = nn.Linear(5, 7).to(torch.bfloat16).requires_grad_(False)
    weight, bias = transform.fold(original.weight, original.bias)
    assert (
        weight.dtype == bias.dtype == transform.apply(torch.zeros(2, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    )


def test_a_half_precision_layer_loses_a_few_roundings():
    """Those of its bias, which now holds the centre's share of the output, of the shift, and of the output."""
    torch.manual_seed(0)
    original = nn.Linear(64, 64, bias=False).to(torch.bfloat16).requires_grad_(False)
    centre = 1000 + torch.rand(64)  # bf16 is 4 apart there
    x = (centre + 16 * torch.randn(512, 64)).to(torch.bfloat16)
    transform = ChannelTransform(centre, torch.ones(64))
    layer = QuantizedLayer(original, "linear", None, None, transform, transform_here=True)
    exact = x.double() @ original.weight.double().T
    assert_close(layer(x), exact, 3 * 2**-9 * float(exact.abs().max()), "bf16")


@layers
def test_the_identity_changes_nothing(name):
    _, original, x = build(name)
    plain = ChannelTransform(torch.zeros(5), torch.ones(5))
    weight, bias = plain.fold(original.weight, original.bias)
    assert_same(weight, original.weight, "weight")
    assert bias is original.bias
    assert_same(plain.apply(x, -1 if name.startswith("linear") else 1), x, "input")


def test_a_scale_alone_gives_no_bias():
    _, bias = ChannelTransform(torch.zeros(5), torch.full((5,), 2.0)).fold(torch.ones(7, 5), None)
    assert bias is None


@pytest.mark.parametrize("name", ["linear", "conv2d-padding", "conv3d"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_weights_are_quantized_after_they_are_folded(name, symmetric):
    kind, original, _ = build(name)
    transform, form = some_transform(), WeightFormat(4, symmetric)
    layer = QuantizedLayer(original, kind, form, None, transform)
    folded, _ = transform.fold(original.weight, original.bias)
    grid = weight_grid(folded, form)
    assert_same(layer.codes, quantize(folded, grid), "codes")
    assert_same(layer.weight.detach(), dequantize(quantize(folded, grid), grid), "weight")
