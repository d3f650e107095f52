"""Which step of the sampler a denoiser is computing, for layers that treat every step differently."""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.errors import GenerationError


class StepClock:
    """Reads the timestep of every call of one denoiser and tells its layers the step's number.

    Each thread has its own time, so clips sampled side by side do not disturb each other. A compiled graph
    is left to read it, or it would be compiled anew for every step.
    """

    def __init__(self, denoiser: nn.Module, timesteps: Tensor):
        self._numbers = {float(t): number for number, t in enumerate(timesteps)}
        self._now = threading.local()
        denoiser.register_forward_pre_hook(self.read, with_kwargs=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"_numbers": self._numbers}  # what time it is belongs to each thread alone

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._numbers, self._now = state["_numbers"], threading.local()

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Those of the sampler this clock knows, in its order."""
        return tuple(self._numbers)

    @property
    def steps(self) -> int:
        """Length of the sampler this clock knows."""
        return len(self._numbers)

    @property
    @torch.compiler.disable
    def step(self) -> int:
        """0-based number of the step now computed in this thread."""
        return int(self._now.step)

    def rows_of(self, *tables: Tensor) -> list[Tensor]:
        """The present step's row of each table [steps, ...], as [1, ...]."""
        now = self.step
        return [table[now : now + 1] for table in tables]

    @torch.compiler.disable
    def read(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the time from the arguments of a denoiser call.

        Raises:
            GenerationError: the timestep is not one of this clock's sampler.
        """
        value = _timestep(args, kwargs)
        if value not in self._numbers:
            raise GenerationError(
                f"This variant is fixed to the {self.steps} steps it was calibrated for, and timestep"
                f" {value:g} is none of them: sample with {self.steps} steps and the model's own sampler, or"
                " choose a recipe that does not treat every step by itself."
            )
        self._now.step = self._numbers[value]


class TableClock:
    """Tells tables which row is that of the present step, as a tensor, which compiled graphs can read.

    There is one for all threads, so a call of the denoiser waits until the one before has ended.

    Attributes:
        row: int64 [1], on the denoiser's device.
        known: whether the present timestep has a row.
    """

    def __init__(self, denoiser: nn.Module, timesteps: Tensor):
        self._rows = {float(t): number for number, t in enumerate(timesteps)}
        self._busy = threading.RLock()
        self.row = torch.zeros(1, dtype=torch.int64, device=next(denoiser.parameters()).device)
        self.known = True
        denoiser.register_forward_pre_hook(self._begin, with_kwargs=True)
        denoiser.register_forward_hook(self._end, always_call=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> TableClock:
        twin = object.__new__(type(self))
        twin._rows, twin._busy, twin.row, twin.known = self._rows, threading.RLock(), self.row.clone(), True
        memo[id(self)] = twin
        return twin

    def rows_of(self, *tables: Tensor) -> list[Tensor]:
        """The present step's row of each table [steps, ...], as [1, ...]; the first if the step is not known."""
        return [table.index_select(0, self.row) for table in tables]

    def _begin(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._busy.acquire()
        value = _timestep(args, kwargs)
        self.known = value in self._rows
        self.row.fill_(self._rows.get(value, 0))
        if not self.known:
            warnings.warn(
                f"Timestep {value:g} is none of the {len(self._rows)} whose time path is tabulated: it is computed.",
                stacklevel=1,
            )

    def _end(self, denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with contextlib.suppress(RuntimeError):  # another hook has failed before this one's beginning
            self._busy.release()


def _timestep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The timestep among the arguments of a denoiser call."""
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
