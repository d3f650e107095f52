"""Grids that input quantizers hand to an integer engine: the very ones that simulation uses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qvd_core.formats import ActivationFormat
from qvd_core.layers.clock import StepClock, TableClock
from qvd_core.layers.inputs import (
    DynamicPerToken,
    DynamicSplit,
    GridQuantizer,
    OncePerInput,
    OneGrid,
    StaticPerFrame,
    StaticPerStep,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.quantizers.uniform import Grid, fake_quantize, make_grid
from tests.closeness import assert_same

LOW, HIGH = torch.tensor([-1.0, -0.2, -5.0]), torch.tensor([3.0, 0.1, 0.5])
schemes = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])


def some(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3


def by_step(form: ActivationFormat, kind: type[StepClock | TableClock] = StepClock) -> StaticPerStep:
    """At the second of three steps."""
    denoiser = nn.Linear(1, 1)
    denoiser.forward = lambda sample, timestep: sample
    quantizer = StaticPerStep(LOW, HIGH, form, kind(denoiser, torch.tensor([9.0, 5.0, 1.0])))
    denoiser(torch.zeros(1), torch.tensor(5.0))
    return quantizer


QUANTIZERS = {
    "tensor": lambda form: StaticPerTensor(LOW[:1], HIGH[:1], form),
    "frame": lambda form: StaticPerFrame(LOW, HIGH, form),
    "step": by_step,
    "step-by-table": lambda form: by_step(form, TableClock),
    "split": lambda form: StaticSplit(LOW[:2], HIGH[:2], form, 2, 5),
    "first-part": lambda form: StaticSplit(LOW[:2], HIGH[:2], form, 2, 5).parts()[0],
    "token": lambda form: DynamicPerToken(form, "conv2d"),
    "row": lambda form: DynamicPerToken(form, "linear"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bits", [3, 8, 12])
@pytest.mark.parametrize("name", QUANTIZERS)
@schemes
def test_simulation_uses_the_grid_it_hands_out(name, bits, symmetric, dtype):
    quantizer: GridQuantizer = QUANTIZERS[name](ActivationFormat(bits, symmetric=symmetric))
    x = some(6, 5, 4, 3).to(dtype)
    grid = quantizer.grid_for(x)
    assert_same(quantizer(x), fake_quantize(x, grid))
    assert torch.broadcast_shapes(grid.scale.shape, x.shape) == x.shape
    assert grid.scale.shape == grid.zero_point.shape
    assert (grid.scale.dtype, grid.zero_point.dtype) == (torch.float32, torch.int32)
    assert (grid.code_min, grid.code_max) == (quantizer.code_min, quantizer.code_max)
    assert grid.code_max - grid.code_min == 2**bits - (2 if symmetric else 1)
    assert quantizer.symmetric is symmetric
    if symmetric:
        assert not grid.zero_point.any()
    if quantizer.one_grid:
        assert_same(grid.scale, quantizer.scale)
        assert quantizer.scale.numel() == quantizer.zero_point.numel() == 1


def test_which_quantizers_have_one_grid():
    one = {name for name, make in QUANTIZERS.items() if make(ActivationFormat(8)).one_grid}
    assert one == {"tensor", "first-part"}


@schemes
def test_every_frame_of_every_sample_has_the_grid_of_its_number(symmetric):
    form = ActivationFormat(8, "static_per_frame", symmetric)
    for shape in ((6, 4), (6, 5, 4), (6, 4, 3, 2), (6, 4, 1, 3, 2)):
        grid = StaticPerFrame(LOW, HIGH, form).grid_for(some(*shape))
        assert grid.scale.shape == (6, *[1] * (len(shape) - 1))
        expected = make_grid(LOW, HIGH, 8, symmetric)
        assert_same(grid.scale.flatten(), expected.scale.repeat(2))
        assert_same(grid.zero_point.flatten(), expected.zero_point.repeat(2))


@schemes
def test_static_parts_together_are_the_whole(symmetric):
    whole = StaticSplit(LOW[:2], HIGH[:2], ActivationFormat(6, symmetric=symmetric), 2, 5)
    x = some(4, 5, 3, 3)
    first, rest = whole.parts()
    assert type(first) is type(rest) is OneGrid
    assert_same(torch.cat([first(x[:, :2]), rest(x[:, 2:])], 1), whole(x))
    for part, low, high in zip((first, rest), LOW, HIGH, strict=False):
        assert_same(part.scale, make_grid(low[None], high[None], 6, symmetric).scale)


@schemes
def test_dynamic_parts_together_are_the_whole(symmetric):
    whole = DynamicSplit(DynamicPerToken(ActivationFormat(6, "dynamic_per_token", symmetric), "conv2d"), 2)
    x = some(4, 5, 3, 3)
    first, rest = whole.parts()
    assert_same(torch.cat([first(x[:, :2]), rest(x[:, 2:])], 1), whole(x))


def test_one_grid_keeps_its_own_numbers():
    scale, zero_point = torch.tensor([0.5]), torch.tensor([3], dtype=torch.int32)
    quantizer = OneGrid(Grid(scale, zero_point, -8, 7))
    scale.zero_()
    assert quantizer(torch.tensor([-9.0, 0.2, 0.3, 9.0])).tolist() == [-5.5, 0.0, 0.5, 2.0]
    assert set(quantizer.state_dict()) == {"scale", "zero_point"}


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x)
        return x + 1


def test_a_copy_of_a_shared_quantizer_remembers_by_itself():
    """Though a copy is made between two readers; and readers that were one object stay one."""
    shared = OncePerInput(Recording(), 2).eval()
    x = some(2, 3)
    shared(x)
    first, second = copy.deepcopy([shared, shared])
    assert first is second
    assert first.quantizer is not shared.quantizer
    assert first.readers == 2
    assert not first.training
    assert_same(first(x), x + 1)
    assert_same(shared(x), x + 1)
    assert_same(first(x), x + 1)
    assert len(shared.quantizer.seen) == 1
    assert len(first.quantizer.seen) == 2  # one it was copied with, one of its own
