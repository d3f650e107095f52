"""Channel balancing against SmoothQuant's equation 4, one channel at a time."""

from __future__ import annotations

import pytest
import torch

from qvd_core.methods.channel_balancing import FLOOR, balance_channels
from tests.closeness import assert_close, assert_same

STEPS, CHANNELS = 3, 5


def some_ranges() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ends = 3 * torch.randn(2, STEPS, CHANNELS, generator=generator)
    return ends.amin(0), ends.amax(0)


@pytest.mark.parametrize("strength", [0, 0.25, 0.5, 0.75, 1])
@pytest.mark.parametrize(
    "shapes",
    [[(7, CHANNELS)], [(7, CHANNELS), (2, CHANNELS)], [(4, CHANNELS, 3, 3)], [(4, CHANNELS, 1, 2, 2)]],
    ids=str,
)
def test_the_formula(strength, shapes):
    low, high = some_ranges()
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    transform = balance_channels(low, high, weights, strength)
    for channel in range(CHANNELS):
        inputs = max(max(abs(float(a)), abs(float(b))) for a, b in zip(low[:, channel], high[:, channel], strict=True))
        outputs = max(float(weight[:, channel].abs().max()) for weight in weights)
        expected = inputs**strength / outputs ** (1 - strength)
        assert float(transform.scale[channel]) == pytest.approx(expected, rel=1e-5)
    assert_same(transform.shift, torch.zeros(CHANNELS))


def test_half_strength_makes_inputs_and_weights_equally_wide():
    low, high = some_ranges()
    weight = torch.randn(7, CHANNELS, generator=torch.Generator().manual_seed(1))
    transform = balance_channels(low, high, [weight], 0.5)
    inputs = transform.apply(torch.maximum(low.abs(), high.abs())).amax(0)
    outputs = transform.fold(weight, None)[0].abs().amax(0)
    assert_close(inputs, outputs, 1e-5, "widths")


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_channels_of_zeros_keep_scales_finite_and_positive(strength):
    low, high = some_ranges()
    low[:, 0] = high[:, 0] = 0
    weight = torch.ones(7, CHANNELS)
    weight[:, 1] = 0
    scale = balance_channels(low, high, [weight], strength).scale
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert float(scale[0]) == pytest.approx(FLOOR**strength)
