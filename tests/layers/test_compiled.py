"""What keeps state between calls or knows the step, under torch.compile: the same numbers, no new graph per step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvd_core.formats import ActivationFormat, WeightFormat
from qvd_core.layers.clock import StepClock
from qvd_core.layers.inputs import DynamicPerToken, Logarithmic, OncePerInput, StaticPerStep, StaticPerTensor
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.quantizers.logarithmic import log_grid
from tests.closeness import assert_same

TIMESTEPS = torch.arange(12.0)


class Denoiser(nn.Module):
    """Three readers of one input, and a layer of the time path."""

    def __init__(self, quantizer: nn.Module | None = None):
        super().__init__()
        self.readers = nn.ModuleList(
            QuantizedLayer(nn.Linear(8, 8), "linear", WeightFormat(8), quantizer) for _ in range(3)
        )
        self.by_step: nn.Module = nn.Identity()

    def forward(self, sample, timestep):
        q, k, v = (reader(sample) for reader in self.readers)
        return torch.softmax(q @ k.mT, -1) @ v + self.by_step(sample)


@pytest.mark.parametrize(
    "quantizer",
    [
        lambda: StaticPerTensor(torch.tensor(-2.0), torch.tensor(3.0), ActivationFormat(6)),
        lambda: DynamicPerToken(ActivationFormat(6), "linear"),
        lambda: Logarithmic(log_grid(torch.tensor(3.0), torch.tensor(2.5), 6)),
    ],
    ids=["static", "dynamic", "logarithmic"],
)
def test_an_input_with_three_readers_is_one_graph(quantizer):
    denoiser = Denoiser(OncePerInput(quantizer(), 3))
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    for seed in range(2):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        assert_same(compiled(x, TIMESTEPS[0]), denoiser(x, TIMESTEPS[0]))


@pytest.mark.parametrize("kind", ["tabulated", "per-step"])
def test_layers_that_know_the_step_are_compiled_once_for_all_steps(kind):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    denoiser = Denoiser(StaticPerTensor(torch.tensor(-2.0), torch.tensor(3.0), ActivationFormat(6)))
    clock = StepClock(denoiser, TIMESTEPS)
    if kind == "tabulated":
        denoiser.by_step = TabulatedLayer(torch.arange(12.0)[:, None].expand(12, 8), clock)
    else:
        ends = torch.linspace(1, 3, 12)
        denoiser.by_step = StaticPerStep(-ends, ends, ActivationFormat(6), clock)
    compiled = torch.compile(denoiser, backend=counting)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = [compiled(x, timestep) for timestep in TIMESTEPS]
    for result, timestep in zip(found, TIMESTEPS, strict=True):
        assert_same(result, denoiser(x, timestep))
    assert not torch.equal(found[0], found[-1])
    assert len(graphs) < 6  # a few stretches between breaks; not a set of them for each of twelve steps
