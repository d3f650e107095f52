"""The clock that tells layers the sampler's step, and the layers that are looked up by it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from qvd_core.errors import GenerationError
from qvd_core.formats import ActivationFormat
from qvd_core.layers.clock import StepClock
from qvd_core.layers.inputs import StaticPerStep
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.quantizers.uniform import fake_quantize, make_grid
from tests.closeness import assert_same

TIMESTEPS = torch.tensor([999.0, 666.5, 333.25, 0.0])


class Denoiser(nn.Module):
    """Calls its layer, as soon as `wait` lets it."""

    def __init__(self, layer: nn.Module | None = None, wait=lambda: None):
        super().__init__()
        self.layer, self.wait = layer, wait

    def forward(self, sample, timestep, encoder_hidden_states=None):
        self.wait()
        return sample if self.layer is None else self.layer(sample)


@pytest.mark.parametrize(
    "call",
    [
        lambda d, t: d(torch.zeros(2, 3), t),
        lambda d, t: d(torch.zeros(2, 3), timestep=t),
        lambda d, t: d(sample=torch.zeros(2, 3), timestep=t),
        lambda d, t: d(torch.zeros(2, 3), t.expand(2), encoder_hidden_states=None),
        lambda d, t: d(torch.zeros(2, 3), t.reshape(1, 1)),
        lambda d, t: d(torch.zeros(2, 3), float(t)),
    ],
    ids=["by-place", "by-name", "all-by-name", "one-for-each-sample", "two-axes", "a-plain-number"],
)
def test_every_timestep_has_its_number(call):
    denoiser = Denoiser()
    clock = StepClock(denoiser, TIMESTEPS)
    assert clock.steps == 4
    for number in (2, 0, 3, 1, 1):
        call(denoiser, TIMESTEPS[number])
        assert clock.step == number


def test_whole_timesteps_of_either_type():
    denoiser = Denoiser()
    clock = StepClock(denoiser, torch.tensor([801, 401, 1]))
    for timestep in (torch.tensor(401), torch.tensor(401.0), 401):
        denoiser(torch.zeros(1), torch.tensor(1))
        denoiser(torch.zeros(1), timestep)
        assert clock.step == 1


@pytest.mark.parametrize("timestep", [998.0, 0.5, -1.0, float("nan")])
def test_a_timestep_of_another_sampler_says_what_to_do(timestep):
    denoiser = Denoiser()
    StepClock(denoiser, TIMESTEPS)
    with pytest.raises(GenerationError, match=r"4 steps .* timestep \S+ is none of them: sample with 4 steps"):
        denoiser(torch.zeros(1), torch.tensor(timestep))


def test_threads_at_different_steps_keep_their_own_time():
    """All have read their timestep before any layer runs."""
    barrier = threading.Barrier(4, timeout=20)
    denoiser = Denoiser(wait=barrier.wait)
    clock = StepClock(denoiser, TIMESTEPS)
    denoiser.layer = TabulatedLayer(torch.arange(4.0)[:, None] * torch.ones(5), clock)
    with ThreadPoolExecutor(4) as pool:
        for order in ((0, 1, 2, 3), (3, 0, 1, 2)):
            calls = [pool.submit(denoiser, torch.zeros(2, 7), TIMESTEPS[n]) for n in order]
            assert [call.result().unique().tolist() for call in calls] == [[n] for n in order]


def test_a_tabulated_layer_gives_the_row_of_the_step():
    torch.manual_seed(0)
    layer = nn.Linear(3, 5).requires_grad_(False)
    inputs = torch.randn(4, 3)
    denoiser = Denoiser()
    denoiser.layer = TabulatedLayer(layer(inputs), StepClock(denoiser, TIMESTEPS))
    for number in range(4):
        for shape in ((3,), (6, 3), (2, 4, 3)):
            given = denoiser(torch.full(shape, 7.0), TIMESTEPS[number])  # whatever it is, the step decides
            assert given.shape == (*shape[:-1], 5)
            assert_same(given, layer(inputs)[number].expand(*shape[:-1], 5), f"step {number}")


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_one_grid_for_each_step(symmetric):
    low, high = -torch.tensor([1.0, 2.0, 0.5, 4.0]), torch.tensor([3.0, 0.25, 1.0, 0.0])
    form = ActivationFormat(5, "static_per_step", symmetric)
    denoiser = Denoiser()
    denoiser.layer = StaticPerStep(low, high, form, StepClock(denoiser, TIMESTEPS))
    x = 3 * torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    for number in (1, 3, 0, 2):
        grid = make_grid(low[number], high[number], 5, symmetric)
        assert_same(denoiser(x, TIMESTEPS[number]), fake_quantize(x, grid), f"step {number}")
