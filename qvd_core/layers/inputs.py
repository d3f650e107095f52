"""Input quantizers of a layer: on a grid fixed by calibration, or on one found as the input arrives."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from qvd_core.errors import GenerationError
from qvd_core.formats import ActivationFormat
from qvd_core.layers.clock import StepClock, TableClock
from qvd_core.quantizers import logarithmic
from qvd_core.quantizers.uniform import Grid, fake_quantize, make_grid


class GridQuantizer(nn.Module):
    """Puts a tensor on uniform grids; subclasses say which.

    Simulation calls the module; an integer engine takes `grid_for` and makes the codes itself, so that both
    have the same.

    Attributes:
        code_min, code_max: the ends of the code range.
        one_grid: whether there is a single grid, known beforehand; then `scale` and `zero_point` have one element.
    """

    code_min: int
    code_max: int
    scale: Tensor
    zero_point: Tensor
    one_grid = False

    @property
    def symmetric(self) -> bool:
        """Whether all zero points are 0."""
        return self.code_min == -self.code_max

    def grid_for(self, x: Tensor) -> Grid:
        """The grids of `x`, broadcasting against it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.grid_for(x))


class StaticGrids(GridQuantizer):
    """One or several grids, fixed by calibration; subclasses say which value is on which."""

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat):
        super().__init__()
        grid = make_grid(low.reshape(-1), high.reshape(-1), form.bits, form.symmetric)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.code_min, self.code_max = grid.code_min, grid.code_max

    def grids(self) -> Grid:
        return Grid(self.scale, self.zero_point, self.code_min, self.code_max)


class StaticPerTensor(StaticGrids):
    """One grid for all inputs."""

    one_grid = True

    def grid_for(self, x: Tensor) -> Grid:
        return self.grids()


class StaticPerFrame(StaticGrids):
    """One grid for each frame; the input's leading axis is samples x frames."""

    def grid_for(self, x: Tensor) -> Grid:
        frames = len(self.scale)
        if len(x) % frames:
            raise GenerationError(
                f"This variant has one grid for each of {frames} frames; sample {frames} frames, or calibrate"
                " with as many as you want."
            )
        return _along(self.grids(), x.dim(), 0, len(x) // frames)


class StaticPerStep(StaticGrids):
    """One grid for each step of the calibrated sampler."""

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat, clock: StepClock | TableClock):
        super().__init__(low, high, form)
        self.clock = clock

    def grid_for(self, x: Tensor) -> Grid:
        scale, zero_point = self.clock.rows_of(self.scale, self.zero_point)
        return Grid(scale, zero_point, self.code_min, self.code_max)


class StaticSplit(StaticGrids):
    """One grid for the first `split` channels of a convolution's input, one for the rest."""

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat, split: int, channels: int):
        super().__init__(low, high, form)
        self.split = split
        sizes = torch.tensor([split, channels - split])
        self.scale, self.zero_point = self.scale.repeat_interleave(sizes), self.zero_point.repeat_interleave(sizes)

    def grid_for(self, x: Tensor) -> Grid:
        return _along(self.grids(), x.dim(), 1, 1)

    def parts(self) -> list[GridQuantizer]:
        """What quantizes the first channels, and what the rest."""
        ends = (slice(1), slice(-1, None))
        return [OneGrid(Grid(self.scale[e], self.zero_point[e], self.code_min, self.code_max)) for e in ends]


class OneGrid(GridQuantizer):
    """A given grid for all of a tensor."""

    one_grid = True

    def __init__(self, grid: Grid):
        super().__init__()
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.clone())
        self.code_min, self.code_max = grid.code_min, grid.code_max

    def grid_for(self, x: Tensor) -> Grid:
        return Grid(self.scale, self.zero_point, self.code_min, self.code_max)


def _along(grid: Grid, dimensions: int, axis: int, repeats: int) -> Grid:
    """Grids that change along `axis` of a tensor, `repeats` times over."""
    shape = [1] * dimensions
    shape[axis] = -1
    scale, zero_point = (t.repeat(repeats).view(shape) for t in (grid.scale, grid.zero_point))
    return Grid(scale, zero_point, grid.code_min, grid.code_max)


class OncePerInput(nn.Module):
    """Quantizes a tensor that several layers read, such as q, k and v, for the first of them only.

    Each thread remembers its own last input, and what became of it until the last reader has come.
    """

    def __init__(self, quantizer: nn.Module, readers: int):
        super().__init__()
        self.quantizer, self.readers = quantizer, readers
        self._last = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> OncePerInput:
        twin = memo[id(self)] = OncePerInput(copy.deepcopy(self.quantizer, memo), self.readers)
        return twin.train(self.training)

    def forward(self, x: Tensor) -> Any:
        if torch.compiler.is_compiling():  # a compiler finds equal computations by itself
            return self.quantizer(x)
        last = self._last
        if getattr(last, "input", lambda: None)() is not x:
            last.input, last.output, last.left = weakref.ref(x), self.quantizer(x), self.readers
        output = last.output
        last.left -= 1
        if last.left == 0:
            del last.input, last.output
        return output


class DynamicPerToken(GridQuantizer):
    """One grid per token, found as it arrives: a row of a linear input, a whole sample of a convolution's."""

    def __init__(self, form: ActivationFormat, kind: str):
        super().__init__()
        self.form, self.kind = form, kind
        ends = make_grid(torch.zeros(1), torch.ones(1), form.bits, form.symmetric)
        self.code_min, self.code_max = ends.code_min, ends.code_max
        self.axes: tuple[int, ...] = (-1,) if kind == "linear" else tuple(range(1, 2 + int(kind[-2])))

    def grid_for(self, x: Tensor) -> Grid:
        # Grids in fp32 whatever the input: bf16 cannot tell codes beyond 256 apart.
        low, high = x.amin(self.axes, keepdim=True).float(), x.amax(self.axes, keepdim=True).float()
        return make_grid(low, high, self.form.bits, self.form.symmetric)


class DynamicSplit(nn.Module):
    """The first `split` channels of a convolution's input and the rest, each on grids of their own."""

    def __init__(self, quantizer: DynamicPerToken, split: int):
        super().__init__()
        self.quantizer, self.split = quantizer, split

    def parts(self) -> list[GridQuantizer]:
        """What quantizes the first channels, and what the rest."""
        return [self.quantizer, self.quantizer]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.quantizer(part) for part in (x[:, : self.split], x[:, self.split :])], 1)


class Logarithmic(nn.Module):
    """HiDi-TQ's grid, see `qvd_core.quantizers.logarithmic`."""

    def __init__(self, grid: logarithmic.LogGrid):
        super().__init__()
        self.grid = grid
        _ = grid.magnitudes, grid.thresholds  # its tables, now: torch.compile cannot make them later

    def forward(self, x: Tensor) -> Tensor:
        return logarithmic.fake_quantize(x, self.grid)
