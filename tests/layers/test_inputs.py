"""Input quantizers against the formulas in numpy, one slice at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from qvd_core.errors import GenerationError
from qvd_core.formats import ActivationFormat
from qvd_core.layers.inputs import (
    DynamicPerToken,
    DynamicSplit,
    Logarithmic,
    OncePerInput,
    StaticPerFrame,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.quantizers import logarithmic
from tests.closeness import assert_close, assert_same

FRAMES = 3
schemes = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def on_grid(x: torch.Tensor, low: float, high: float, bits: int, symmetric: bool) -> np.ndarray:
    """The values a uniform grid over [low, high] has for x, by the textbook, in fp64."""
    values = x.double().numpy()
    if symmetric:
        ends = 2 ** (bits - 1) - 1
        scale = max(abs(low), abs(high)) / ends
        return np.clip(np.rint(values / scale), -ends, ends) * scale
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale


def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3).to(dtype)


def assert_on_grid(actual, x, expected) -> None:
    """Equal up to rounding; a value halfway between two levels, of which bf16 has many, may fall to either."""
    assert actual.dtype == x.dtype
    slack = (2**-8 if x.dtype == torch.bfloat16 else 1e-6) * float(np.abs(expected).max())
    found, values = actual.double().numpy(), x.double().numpy()
    assert (np.abs(np.abs(found - values) - np.abs(expected - values)) <= 2 * slack).all()
    assert (np.abs(found - expected) <= slack).mean() > (0.8 if x.dtype == torch.bfloat16 else 0.99)


@schemes
@dtypes
def test_one_grid_for_all(symmetric, dtype):
    x = some(4, 5, 6, dtype=dtype)
    quantizer = StaticPerTensor(torch.tensor([-1.0]), torch.tensor([3.0]), ActivationFormat(4, symmetric=symmetric))
    assert_on_grid(quantizer(x), x, on_grid(x, -1, 3, 4, symmetric))


@schemes
@dtypes
@pytest.mark.parametrize("rest", [(6,), (5, 6), (4, 3, 2)], ids=["rows", "tokens", "images"])
@pytest.mark.parametrize("samples", [1, 2])
def test_one_grid_for_each_frame(symmetric, dtype, rest, samples):
    """The leading axis is samples x frames, so that frame f of every sample is at f, f + frames, ..."""
    low, high = torch.tensor([-1.0, -0.2, -5.0]), torch.tensor([3.0, 0.1, 0.0])
    form = ActivationFormat(4, "static_per_frame", symmetric)
    x = some(samples * FRAMES, *rest, dtype=dtype)
    given = StaticPerFrame(low, high, form)(x)
    for position in range(len(x)):
        ends = float(low[position % FRAMES]), float(high[position % FRAMES])
        expected = on_grid(x[position], *ends, 4, symmetric)
        assert_on_grid(given[position], x[position], expected)


def test_a_grid_for_each_frame_keeps_the_memory_format():
    x = some(FRAMES, 4, 3, 2).contiguous(memory_format=torch.channels_last)
    quantizer = StaticPerFrame(-torch.ones(FRAMES), torch.ones(FRAMES), ActivationFormat(8, "static_per_frame"))
    assert_same(quantizer(x), quantizer(x.contiguous()))


@pytest.mark.parametrize("length", [1, 2, 4, 5, 7])
def test_other_numbers_of_frames_are_refused(length):
    quantizer = StaticPerFrame(-torch.ones(FRAMES), torch.ones(FRAMES), ActivationFormat(8, "static_per_frame"))
    with pytest.raises(GenerationError, match="one grid for each of 3 frames; sample 3 frames, or calibrate"):
        quantizer(some(length, 4))


@schemes
@dtypes
@pytest.mark.parametrize("split", [1, 4])
def test_one_grid_for_each_part_of_the_channels(symmetric, dtype, split):
    low, high = torch.tensor([-1.0, -4.0]), torch.tensor([0.5, 6.0])
    x = some(2, 5, 4, 3, dtype=dtype)
    given = StaticSplit(low, high, ActivationFormat(4, symmetric=symmetric), split, 5)(x)
    for part, ends in ((slice(split), (-1.0, 0.5)), (slice(split, None), (-4.0, 6.0))):
        expected = on_grid(x[:, part], *ends, 4, symmetric)
        assert_on_grid(given[:, part], x[:, part], expected)


@schemes
@dtypes
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("linear", (3, 4, 16)),
        ("linear", (5, 16)),
        ("conv1d", (4, 3, 9)),
        ("conv2d", (4, 3, 5, 4)),
        ("conv3d", (2, 3, 2, 4, 3)),
    ],
    ids=["linear", "linear-rows", "conv1d", "conv2d", "conv3d"],
)
def test_one_grid_for_each_token(symmetric, dtype, kind, shape):
    x = some(*shape, dtype=dtype)
    given = DynamicPerToken(ActivationFormat(4, "dynamic_per_token", symmetric), kind)(x)
    tokens = x.flatten(0, -2) if kind == "linear" else x.flatten(1)
    for token, restored in zip(tokens, given.reshape(tokens.shape), strict=True):
        low, high = float(token.min()), float(token.max())
        expected = on_grid(token, low, high, 4, symmetric)
        assert_on_grid(restored, token, expected)


@schemes
def test_both_parts_of_the_channels_get_dynamic_grids_of_their_own(symmetric):
    x = some(2, 5, 3, 3) * torch.tensor([1.0, 1, 1, 40, 40]).view(1, 5, 1, 1)
    dynamic = DynamicPerToken(ActivationFormat(4, "dynamic_per_token", symmetric), "conv2d")
    found = DynamicSplit(dynamic, 3)(x)
    for part in (slice(0, 3), slice(3, 5)):
        for sample in range(2):
            own = x[sample, part]
            expected = on_grid(own, float(own.min()), float(own.max()), 4, symmetric)
            assert_on_grid(found[sample, part], own, expected)


@dtypes
def test_logarithmic_grids_are_those_of_the_quantizer(dtype):
    grid = logarithmic.log_grid(torch.tensor(4.0), torch.tensor(2.5), 6)
    x = some(7, 9, dtype=dtype)
    expected = 4.0 * 2.0 ** (-np.rint(-2.5 * np.log2(np.abs(x.double().numpy()) / 4.0)).clip(0) / 2.5)
    given = Logarithmic(grid)(x)
    assert given.dtype == dtype
    found = given.double().numpy()
    kept = found != 0
    assert kept.mean() > 0.95
    error = np.abs(np.abs(found[kept]) / expected[kept] - 1)
    assert np.quantile(error, 0.95) < (2**-8 if dtype == torch.bfloat16 else 1e-6)
    assert (np.sign(found[kept]) == np.sign(x.double().numpy()[kept])).all()


class Counting(nn.Module):
    """Doubles what it is given, and counts how often."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return 2 * x


def test_what_three_layers_read_is_quantized_once():
    counting = Counting()
    shared = OncePerInput(counting, 3)
    for number in range(1, 5):
        x = some(number, 3)
        for _ in range(3):
            assert_same(shared(x), 2 * x)
        assert counting.calls == number


def test_other_inputs_between_the_readers_are_not_mixed_up():
    shared = OncePerInput(Counting(), 2)
    first, second = some(2, 3), some(2, 3) + 1
    for x in (first, second, first, first, second, second, first):
        assert_same(shared(x), 2 * x)


def test_an_input_that_changed_is_quantized_again():
    """The same tensor object with other values, as after an operation in place, once all have read it."""
    shared = OncePerInput(Counting(), 2)
    x = some(2, 3)
    shared(x), shared(x)
    x += 1
    assert_same(shared(x), 2 * x)


def test_threads_do_not_share_what_they_read():
    """Two threads that take turns: each has its own input quantized once, and gets its own back."""
    counting = Counting()
    shared = OncePerInput(counting, 3)
    turns = threading.Barrier(2, timeout=20)

    def read(x):
        results = []
        for _ in range(3):
            results.append(shared(x))
            turns.wait()
        return results

    inputs = [some(4, 3), some(4, 3) + 5]
    with ThreadPoolExecutor(2) as pool:
        for x, results in zip(inputs, pool.map(read, inputs), strict=True):
            for result in results:
                assert_same(result, 2 * x)
    assert counting.calls == 2


def test_grids_of_many_bits_are_exact_to_a_half_step():
    x = some(6, 50).clamp(-1, 1)
    form = ActivationFormat(16)
    for quantizer in (
        StaticPerTensor(-torch.ones(1), torch.ones(1), form),
        StaticPerFrame(-torch.ones(3), torch.ones(3), form),
        DynamicPerToken(ActivationFormat(16, "dynamic_per_token"), "linear"),
    ):
        assert_close(quantizer(x), x, 1.001 / (2**16 - 1), type(quantizer).__name__)
