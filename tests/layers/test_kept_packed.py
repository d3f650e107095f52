"""Layers whose weights are unpacked in every call: the same numbers as dequantized ones, and no float weights."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.inputs import (
    DynamicPerToken,
    DynamicSplit,
    Logarithmic,
    OncePerInput,
    StaticPerFrame,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer, spread, weight_grid
from qvd_core.quantizers.logarithmic import log_grid
from qvd_core.quantizers.packing import BITS, packed_size
from qvd_core.quantizers.uniform import dequantize, quantize
from tests.closeness import assert_same

KINDS = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear-no-bias": (lambda: nn.Linear(7, 5, bias=False), (3, 7)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, padding=1), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "conv2d-grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(6, 4, (3, 1, 1)), (2, 6, 5, 4, 4)),
}
kinds = pytest.mark.parametrize("kind", KINDS)
schemes = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])


def build(kind: str, form: WeightFormat, split: int | None = None) -> tuple[QuantizedLayer, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    original = make()
    return QuantizedLayer(original, kind.partition("-")[0], form, None, split=split), original, torch.randn(shape)


@kinds
@schemes
@pytest.mark.parametrize("bits", BITS)
def test_both_ways_give_the_same(kind, bits, symmetric):
    layer, original, x = build(kind, WeightFormat(bits, symmetric))
    grid = weight_grid(original.weight, layer.weights)
    assert_same(layer.weight, dequantize(quantize(original.weight, grid), grid), "weights")
    assert_same(layer.codes, quantize(original.weight, grid), "codes")
    ready, weight = layer(x), layer.weight
    layer.keep_packed()
    assert_same(layer(x), ready)
    assert_same(layer.weight, weight)
    assert layer.weight.dtype == torch.float32
    layer.keep_dequantized()
    assert_same(layer(x), ready)


@schemes
def test_split_weights_keep_two_scales_for_each_output(symmetric):
    layer, original, x = build("conv2d", WeightFormat(4, symmetric), split=2)
    assert layer.scales.shape == (4, 2, 1, 1)
    assert layer.weight_scale.shape == layer.weight_zero_point.shape == (4, 6, 1, 1)
    grid = spread(weight_grid(original.weight, layer.weights, 2), 6, 2)
    assert_same(layer.weight, dequantize(quantize(original.weight, grid), grid))
    for channel in range(6):
        part = slice(2) if channel < 2 else slice(2, None)
        own = weight_grid(original.weight[:, part], layer.weights)
        assert_same(layer.weight_scale[:, channel], own.scale[:, 0], "scale")
        assert_same(layer.weight_zero_point[:, channel], own.zero_point[:, 0], "zero point")
    ready = layer(x)
    layer.keep_packed()
    assert_same(layer(x), ready)


@kinds
def test_a_packed_layer_holds_no_weights_but_its_codes(kind):
    layer, original, _ = build(kind, WeightFormat(3, symmetric=False))
    layer.keep_packed()
    held = dict([*layer.named_parameters(), *layer.named_buffers()])
    assert held.keys() <= {"packed", "scales", "zero_points", "bias", "dtype_holder"}
    assert held["packed"].nbytes == packed_size(original.weight.numel(), 3)
    assert held["zero_points"].dtype == torch.int8


@schemes
def test_the_state_is_the_same_either_way(symmetric):
    layer, _, _ = build("conv2d", WeightFormat(5, symmetric))
    dequantized = {name: t.clone() for name, t in layer.state_dict().items()}
    layer.keep_packed()
    assert list(layer.state_dict()) == list(dequantized)
    assert all(torch.equal(t, dequantized[name]) for name, t in layer.state_dict().items())
    assert "weight" not in dequantized
    assert ("zero_points" in dequantized) is not symmetric


@kinds
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "dequantized"])
def test_casts_leave_scales_alone_and_are_undone_exactly(kind, packed):
    layer, _, x = build(kind, WeightFormat(8, symmetric=False))
    scales, weight = layer.scales.clone(), layer.weight.clone()
    if packed:
        layer.keep_packed()
    layer.to(torch.bfloat16)
    assert_same(layer.scales, scales, "scales")
    assert_same(layer.weight, weight.to(torch.bfloat16), "weights")
    assert layer(x.to(torch.bfloat16)).dtype == torch.bfloat16
    layer.to(torch.float32)
    assert_same(layer.scales, scales, "scales")
    assert_same(layer.weight, weight, "weights, not rounded twice")


def test_weights_in_floating_point_are_a_parameter_whatever_is_asked():
    layer = QuantizedLayer(nn.Linear(4, 3), "linear", None, None)
    layer.keep_packed()
    layer.keep_dequantized()
    assert isinstance(layer.weight, nn.Parameter)
    assert "weight" in layer.state_dict()


FORM = ActivationFormat(6)
QUANTIZERS = {
    "per-tensor": lambda: StaticPerTensor(torch.tensor(-1.3), torch.tensor(1.7), FORM),
    "per-frame": lambda: StaticPerFrame(-torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), FORM),
    "split": lambda: StaticSplit(-torch.ones(2), torch.tensor([1.0, 3.0]), FORM, 2, 7),
    "logarithmic": lambda: Logarithmic(log_grid(torch.tensor(3.1), torch.tensor(2.3, dtype=torch.float64), 6)),
    "dynamic": lambda: DynamicPerToken(FORM, "linear"),
    "dynamic-split": lambda: DynamicSplit(DynamicPerToken(FORM, "linear"), 2),
    "shared": lambda: OncePerInput(StaticPerTensor(torch.tensor(-1.3), torch.tensor(1.7), FORM), 2),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_no_cast_touches_a_grid(quantizer):
    module = QUANTIZERS[quantizer]()
    before = {name: t.clone() for name, t in module.named_buffers()}
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    expected = module(x)
    module.to(torch.bfloat16)
    assert {name: t.dtype for name, t in module.named_buffers()} == {name: t.dtype for name, t in before.items()}
    assert all(torch.equal(t, before[name]) for name, t in module.named_buffers())
    assert_same(module(x.clone()), expected)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_layers_of_their_own(quantizer, copied):
    torch.manual_seed(0)
    layers = nn.ModuleList()
    shared = QUANTIZERS[quantizer]()
    for _ in range(2):
        layers.append(QuantizedLayer(nn.Linear(7, 5), "linear", WeightFormat(4), shared))
    x = torch.randn(3, 7)
    layers[0](x)  # leaves something to remember in the shared quantizer
    again = copied(layers)
    assert again[0].quantize_input is again[1].quantize_input is not shared
    for mine, other in itertools.pairwise((layers, again)):
        assert_same(other[0](x), mine[0](x))
        assert_same(other[1](x), mine[1](x))


def test_a_state_is_saved_and_loaded_by_torch_too():
    layer, _, x = build("conv2d", WeightFormat(4))
    other, _, _ = build("conv2d", WeightFormat(4))
    other.packed = torch.zeros_like(other.packed)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.keep_dequantized()
    assert_same(other(x), layer(x))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_unpacking_is_one_compiled_graph(bits):
    layer, _, x = build("conv2d", WeightFormat(bits, symmetric=False))
    expected = layer(x)
    layer.keep_packed()
    assert_same(torch.compile(layer, backend="eager", fullgraph=True)(x), expected)
