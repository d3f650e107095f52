"""SCRI: facts about coverage that must hold on any ranges, and the threshold search against plain loops.

The loops below build the very layers a variant would have at each threshold and run them, so they say
what the search claims to minimise.
"""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.inputs import StaticPerTensor
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.methods import scri
from qvd_core.methods.scri import ThresholdSearch, centre_and_half_width, coverage, search_threshold, transform_at
from tests.closeness import assert_close, assert_same

CHANNELS, HEADS, FRAMES = 6, 2, 4
INF = float("inf")


def random_extremes(count: int, channels: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[count, channels] of all kinds: off centre, one-sided, narrow, constant."""
    generator = torch.Generator().manual_seed(seed)
    centre = 5 * torch.randn(count, channels, generator=generator, dtype=torch.float64)
    width = torch.exp(2 * torch.randn(count, channels, generator=generator, dtype=torch.float64))
    width[torch.rand(count, channels, generator=generator) < 0.1] = 0
    return centre - width, centre + width


# Coverage


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_coverage_is_the_definition(symmetric):
    for low, high in zip(*random_extremes(50), strict=True):
        whole = 2 * max(float(low.abs().max()), float(high.abs().max()))
        if not symmetric:
            whole = float(high.max()) - float(low.min())
        expected = [(float(b) - float(a)) / whole for a, b in zip(low, high, strict=True)]
        assert_close(coverage(low, high, symmetric), expected, 1e-6, "coverage")


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_the_shift_never_lowers_any_channels_coverage(symmetric):
    for low, high in zip(*random_extremes(2000), strict=True):
        moved = transform_at(*centre_and_half_width(low, high, True), INF)
        before, after = coverage(low, high, symmetric), coverage(moved.apply(low), moved.apply(high), symmetric)
        assert (after >= before - 1e-9).all()


@pytest.mark.parametrize("shift", [True, False], ids=["with-shift", "alone"])
def test_scaling_never_lowers_any_channels_coverage_and_a_smaller_threshold_never_either(shift):
    for low, high in zip(*random_extremes(500), strict=True):
        centre, half_width = centre_and_half_width(low, high, shift)
        before = coverage(*(transform_at(centre, half_width, INF).apply(e) for e in (low, high)), True)
        for threshold in torch.linspace(float(half_width.max()), float(half_width.mean()), 5):
            moved = transform_at(centre, half_width, threshold)
            after = coverage(moved.apply(low), moved.apply(high), True)
            assert (after >= before - 1e-9).all()
            before = after


def test_coverage_after_shift_and_scale_in_closed_form():
    """h_c / max h_c, and min(h_c, t) / t; on both grids."""
    for low, high in zip(*random_extremes(200), strict=True):
        centre, h = centre_and_half_width(low, high, True)
        t = float(h.max() + h.mean()) / 2
        for threshold, expected in ((INF, h / h.max()), (t, h.clamp(max=t) / t)):
            moved = transform_at(centre, h, threshold)
            for symmetric in (True, False):
                found = coverage(moved.apply(low), moved.apply(high), symmetric)
                assert_close(found, expected, 1e-9, f"t = {threshold}")


def test_inputs_of_zeros_are_covered_fully():
    zeros = torch.zeros(3)
    assert_same(coverage(zeros, zeros, True), torch.ones(3))
    assert_same(coverage(zeros, zeros, False), torch.ones(3))


# The transformation


def test_centre_and_half_width_by_hand():
    low, high = torch.tensor([-1.0, 2.0, -6.0, 0.0]), torch.tensor([3.0, 4.0, -2.0, 0.0])
    centre, half_width = centre_and_half_width(low, high, True)
    assert_same(centre, torch.tensor([1.0, 3.0, -4.0, 0.0]))
    assert_same(half_width, torch.tensor([2.0, 1.0, 2.0, 0.0]))
    centre, half_width = centre_and_half_width(low, high, False)
    assert_same(centre, torch.zeros(4))
    assert_same(half_width, torch.tensor([3.0, 4.0, 6.0, 0.0]))


@pytest.mark.parametrize("shift", [True, False], ids=["with-shift", "alone"])
def test_wide_channels_shrink_to_the_threshold_and_others_stay(shift):
    low, high = (e[0].float() for e in random_extremes(1, 40))
    centre, half_width = centre_and_half_width(low, high, shift)
    threshold = float(half_width.mean())
    transform = transform_at(centre, half_width, threshold)
    assert (transform.scale >= 1).all()
    assert_same(transform.scale[half_width <= threshold], torch.ones(int((half_width <= threshold).sum())))
    reach = torch.maximum(transform.apply(low).abs(), transform.apply(high).abs())
    assert_close(reach, half_width.clamp(max=threshold), 1e-5, "reach")


@pytest.mark.parametrize("threshold", [INF, 0.0, torch.tensor(0.0), torch.tensor(INF)], ids=str)
def test_thresholds_without_meaning_scale_nothing(threshold):
    transform = transform_at(torch.ones(3), torch.tensor([0.0, 1.0, 50.0]), threshold)
    assert_same(transform.scale, torch.ones(3))
    assert_same(transform.shift, torch.ones(3))


# The search


def problem(seed: int = 0, out: int = 5, kernel: tuple[int, ...] = (), length: int = 1, count: int = 12):
    """Tokens [count, length, C] with some wide and off-centre channels, their centre and half-width, and weights."""
    torch.manual_seed(seed)
    width, centre = torch.tensor([0.2, 1, 0.5, 9, 0.3, 4]), torch.tensor([0, 2, -1, 5, 0.5, -8.0])
    tokens = centre + width * torch.randn(count, length, CHANNELS)
    low, high = tokens.amin((0, 1)) - 0.1, tokens.amax((0, 1)) + 0.1
    return tokens, low, high, torch.randn(out, CHANNELS, *kernel)


def thresholds_of(half_width: Tensor) -> list[float]:
    """From the widest half-width down to the mean one in max(100, floor(widest / 0.5)) equal steps, both ends."""
    top, bottom = float(half_width.max()), float(half_width.mean())
    steps = max(100, math.floor(top / 0.5))
    return [top + (bottom - top) * i / steps for i in range(steps + 1)]


def layer_at(weight, centre, half_width, t, weights, inputs, bias=None) -> QuantizedLayer:
    """The layer a variant would have with threshold t."""
    original = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
    original.weight = nn.Parameter(weight, requires_grad=False)
    original.bias = bias
    on_grid = StaticPerTensor(torch.tensor([-t]), torch.tensor([t]), inputs)
    return QuantizedLayer(original, "linear", weights, on_grid, transform_at(centre, half_width, t), True)


def assert_same_search(found: ThresholdSearch, thresholds: list[float], errors: list[float]) -> None:
    assert_close(found.thresholds, thresholds, 1e-5 * thresholds[0], "thresholds")
    # A value on the boundary of two levels may round either way, which moves an error a little.
    relative = (found.errors.double() / torch.tensor(errors, dtype=torch.float64) - 1).abs()
    assert relative.median() < 1e-4
    assert relative.max() < 0.05
    assert errors[found.best] <= min(errors) * 1.01
    assert found.threshold == float(found.thresholds[found.best])


FORMS = [
    (WeightFormat(4, symmetric=False), ActivationFormat(4)),
    (WeightFormat(3), ActivationFormat(5, symmetric=True)),
    (None, ActivationFormat(3)),
]


@pytest.mark.parametrize("shift", [True, False], ids=["with-shift", "alone"])
@pytest.mark.parametrize(("weights", "inputs"), FORMS, ids=["affine", "symmetric", "float-weights"])
def test_the_search_of_a_linear_layer(shift, weights, inputs):
    tokens, low, high, weight = problem()
    centre, half_width = centre_and_half_width(low, high, shift)
    found = search_threshold(tokens, centre, half_width, [weight], weights, inputs)
    thresholds, errors = thresholds_of(half_width), []
    for t in thresholds:
        layer = layer_at(weight, centre, half_width, t, weights, inputs)
        errors.append(float((layer(tokens) - tokens @ weight.T).square().sum(-1).mean()))
    assert_same_search(found, thresholds, errors)
    assert 0 < found.best < 100, "the ends are no interesting test"


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (1, 2, 2), (1, 1)], ids=str)
@pytest.mark.parametrize(("weights", "inputs"), FORMS, ids=["affine", "symmetric", "float-weights"])
def test_the_search_of_a_convolution_sums_over_its_taps(kernel, weights, inputs):
    """As if every tap saw a pixel of its own; weights keep one grid per output channel, over all taps."""
    tokens, low, high, weight = problem(kernel=kernel)
    centre, half_width = centre_and_half_width(low, high, True)
    found = search_threshold(tokens, centre, half_width, [weight], weights, inputs)
    thresholds, errors = thresholds_of(half_width), []
    taps = weight.flatten(2)
    for t in thresholds:
        # All taps side by side as one linear layer, so that its rows share their grid.
        joined = layer_at(
            taps.transpose(1, 2).flatten(1),
            centre.repeat(taps.shape[2]),
            half_width.repeat(taps.shape[2]),
            t,
            weights,
            inputs,
        )
        error = 0.0
        for tap in range(taps.shape[2]):
            part = slice(tap * CHANNELS, (tap + 1) * CHANNELS)
            x = joined.quantize_input((tokens - centre) / joined.input_scale[part])
            made = x @ joined.weight[:, part].T + taps[..., tap] @ centre
            error += float((made - tokens @ taps[..., tap].T).square().sum(-1).mean())
        errors.append(error)
    assert_same_search(found, thresholds, errors)


def test_layers_that_share_an_input_share_the_error():
    tokens, low, high, weight = problem()
    other = torch.randn(3, CHANNELS)
    centre, half_width = centre_and_half_width(low, high, True)
    forms = FORMS[0]
    apart = [search_threshold(tokens, centre, half_width, [w], *forms).errors for w in (weight, other)]
    together = search_threshold(tokens, centre, half_width, [weight, other], *forms).errors
    assert_close(together, apart[0] + apart[1], 1e-4 * float(together.max()), "sum")


@pytest.mark.parametrize("shift", [True, False], ids=["with-shift", "alone"])
@pytest.mark.parametrize(("weights", "inputs"), FORMS, ids=["affine", "symmetric", "float-weights"])
def test_the_search_of_an_attention_is_of_what_it_gives_out(shift, weights, inputs):
    """Of softmax(q k^T scale) v before the output projection, run by diffusers' own module."""
    tokens, low, high, _ = problem(length=FRAMES, count=5)
    tokens, low, high = tokens / 3, low / 3, high / 3
    attention = Attention(CHANNELS, heads=HEADS, dim_head=4, bias=False).requires_grad_(False)
    attention.to_out = nn.ModuleList([nn.Identity(), nn.Identity()])
    exact = attention(tokens)
    centre, half_width = centre_and_half_width(low, high, shift)
    originals = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
    found = search_threshold(tokens, centre, half_width, originals, weights, inputs, (attention.heads, attention.scale))
    thresholds, errors = thresholds_of(half_width), []
    for t in thresholds:
        attention.to_q, attention.to_k, attention.to_v = (
            layer_at(w, centre, half_width, t, weights, inputs) for w in originals
        )
        errors.append(float((attention(tokens) - exact).square().sum(-1).mean()))
    assert_same_search(found, thresholds, errors)


def test_wide_inputs_are_searched_in_finer_steps():
    tokens, low, high, weight = problem()
    for factor, steps in ((1.0, 100), (10.0, None)):
        centre, half_width = centre_and_half_width(factor * low, factor * high, True)
        found = search_threshold(factor * tokens, centre, half_width, [weight], None, ActivationFormat(4))
        expected = steps or math.floor(float(half_width.max()) / 0.5)
        assert len(found.thresholds) == expected + 1
        assert steps or expected > 150
        assert_close(found.thresholds[[0, -1]], [half_width.max(), half_width.mean()], 1e-4, "both ends")
        assert (found.thresholds.diff() < 0).all()


def test_searching_in_parts_changes_nothing(monkeypatch):
    tokens, low, high, weight = problem()
    centre, half_width = centre_and_half_width(low, high, True)
    arguments = tokens, centre, half_width, [weight], *FORMS[0]
    whole = search_threshold(*arguments)
    monkeypatch.setattr(scri, "WEIGHTS_AT_ONCE", 7 * weight.numel())
    assert_close(search_threshold(*arguments).errors, whole.errors, 1e-5 * float(whole.errors.max()), "errors")
    monkeypatch.setattr(scri, "WEIGHTS_AT_ONCE", 1)
    assert search_threshold(*arguments).best == whole.best


def test_of_equal_errors_the_larger_threshold_wins():
    """Tokens of zeros are exact with any threshold."""
    half_width = torch.tensor([1.0, 2.0, 3.0])
    found = search_threshold(
        torch.zeros(9, 1, 3), torch.zeros(3), half_width, [torch.ones(2, 3)], WeightFormat(4), ActivationFormat(4)
    )
    assert_same(found.errors, torch.zeros(101))
    assert (found.best, found.threshold) == (0, 3.0)


@pytest.mark.parametrize("shift", [True, False], ids=["with-shift", "alone"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_inputs_that_never_vary(shift, value):
    """All channels alike: nothing to search, nothing to scale."""
    tokens = torch.full((9, 1, CHANNELS), value)
    centre, half_width = centre_and_half_width(tokens[0, 0], tokens[0, 0], shift)
    _, _, _, weight = problem()
    found = search_threshold(tokens, centre, half_width, [weight], WeightFormat(4), ActivationFormat(4))
    assert torch.isfinite(found.errors).all()
    transform = transform_at(centre, half_width, found.threshold)
    assert_close(transform.scale, torch.ones(CHANNELS), 1e-6, "scale")


def test_one_varying_channel_among_constant_ones():
    torch.manual_seed(0)
    tokens = torch.ones(9, 1, CHANNELS)
    tokens[..., 2] = torch.randn(9, 1)
    low, high = tokens.amin((0, 1)), tokens.amax((0, 1))
    _, _, _, weight = problem()
    found = search_threshold(
        tokens, *centre_and_half_width(low, high, True), [weight], WeightFormat(4), ActivationFormat(4)
    )
    assert torch.isfinite(found.errors).all()
    assert found.threshold > 0
