"""The clock that tells tables their row as a tensor, and tables that compute what they do not hold."""

from __future__ import annotations

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from qvd_core.errors import GenerationError
from qvd_core.layers.clock import StepClock, TableClock
from qvd_core.layers.tabulated import StepTable
from tests.closeness import assert_same

TIMESTEPS = torch.tensor([999.0, 666.5, 333.25, 0.0])
ROWS = torch.arange(20.0).view(4, 5)
SAMPLE = torch.zeros(2, 3)


class Denoiser(nn.Module):
    """Its layer multiplies by -1 what its table does not know."""

    def __init__(self, *, bound: bool = False):
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.other = StepClock(self, TIMESTEPS) if bound else None
        self.clock = TableClock(self, TIMESTEPS)
        self.layer = StepTable(self.layer, ROWS, self.clock)
        self.inside = lambda: None

    def forward(self, sample, timestep, encoder_hidden_states=None):
        self.inside()
        return self.layer(sample)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return Denoiser().requires_grad_(False)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_a_table_gives_the_row_of_the_step(denoiser, shape):
    for number in (2, 0, 3, 1, 1):
        made = denoiser(torch.full(shape, 7.0), timestep=TIMESTEPS[number])
        assert made.shape == (*shape[:-1], 5)
        assert_same(made, ROWS[number].expand(made.shape))
        assert denoiser.clock.known
        assert denoiser.clock.row.tolist() == [number]


def test_several_tables_are_read_at_once(denoiser):
    denoiser(SAMPLE, TIMESTEPS[2])
    first, second = denoiser.clock.rows_of(ROWS, -ROWS[:, :1])
    assert_same(first, ROWS[2:3])
    assert_same(second, -ROWS[2:3, :1])


def test_an_unknown_timestep_is_computed_and_says_so(denoiser):
    x = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="Timestep 500 is none of the 4 whose time path is tabulated: it is computed"):
        made = denoiser(x, torch.tensor(500.0))
    assert_same(made, denoiser.layer.layer(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(denoiser(x, TIMESTEPS[1]), ROWS[1].expand(2, 5))


def test_threads_take_turns(denoiser):
    """Each reads its own row though the others have come in the meantime."""
    barrier = threading.Barrier(4, timeout=20)

    def run(number):
        barrier.wait()
        return denoiser(SAMPLE, TIMESTEPS[number])

    with ThreadPoolExecutor(4) as pool:
        for order in ((0, 1, 2, 3), (3, 0, 1, 2)):
            for number, made in zip(order, pool.map(run, order), strict=True):
                assert_same(made, ROWS[number].expand(2, 5))


@pytest.mark.parametrize("bound", [False, True], ids=["fails-inside", "refused-by-another-clock"])
def test_a_call_that_fails_lets_the_next_thread_in(bound):
    denoiser = Denoiser(bound=bound)

    def fail():
        raise ValueError("inside")

    denoiser.inside = fail
    with pytest.raises(GenerationError if bound else ValueError):
        denoiser(SAMPLE, torch.tensor(500.0) if bound else TIMESTEPS[0])
    denoiser.inside = lambda: None
    with ThreadPoolExecutor(1) as pool:
        assert_same(pool.submit(denoiser, SAMPLE, TIMESTEPS[3]).result(timeout=20), ROWS[3].expand(2, 5))


def test_a_copy_has_a_clock_of_its_own(denoiser):
    denoiser(SAMPLE, TIMESTEPS[1])
    twin = copy.deepcopy(denoiser)
    assert twin.layer.clock is twin.clock is not denoiser.clock
    assert_same(twin(SAMPLE, TIMESTEPS[3]), ROWS[3].expand(2, 5))
    assert denoiser.clock.row.tolist() == [1]
    assert twin.clock.row.tolist() == [3]
    # While one is busy the other is not.
    denoiser.inside = lambda: assert_same(twin(SAMPLE, TIMESTEPS[2]), ROWS[2].expand(2, 5))
    assert_same(denoiser(SAMPLE, TIMESTEPS[0]), ROWS[0].expand(2, 5))


def test_a_copied_step_clock_ticks_by_itself():
    denoiser = Denoiser(bound=True)
    denoiser(SAMPLE, TIMESTEPS[1])
    twin = copy.deepcopy(denoiser)
    assert twin.other is not denoiser.other
    assert twin.other.steps == 4
    twin(SAMPLE, TIMESTEPS[3])
    assert (denoiser.other.step, twin.other.step) == (1, 3)
    assert_same(twin.other.rows_of(ROWS)[0], ROWS[3:])
