"""Input quantizers of a layer: on a grid fixed by calibration, or on one found as the input arrives."""

from __future__ import annotations

import threading
import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qvd_core.errors import GenerationError, ModelError
from qvd_core.formats import ActivationFormat
from qvd_core.layers.clock import StepClock, TableClock
from qvd_core.layers.description import Description, Place, read_fields, read_format
from qvd_core.layers.exact import ExactBuffers
from qvd_core.quantizers import logarithmic
from qvd_core.quantizers.logarithmic import LogGrid
from qvd_core.quantizers.uniform import Grid, fake_quantize, make_grid


class GridQuantizer(ExactBuffers):
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

    exact = ("scale", "zero_point")
    kind: ClassVar[str]

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat):
        super().__init__()
        self.form = form
        grid = make_grid(low.reshape(-1), high.reshape(-1), form.bits, form.symmetric)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.code_min, self.code_max = grid.code_min, grid.code_max

    def grids(self) -> Grid:
        return Grid(self.scale, self.zero_point, self.code_min, self.code_max)

    def describe(self) -> Description:
        return {
            "kind": self.kind,
            "bits": self.form.bits,
            "symmetric": self.form.symmetric,
            "grids": self.scale.numel(),
        }

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> StaticGrids:
        values = read_fields(values, f"the input of {place.name}", bits=int, symmetric=bool, grids=int)
        ends = torch.ones(values["grids"])
        return cls(-ends, ends, read_format(values, place.name)).to("meta")


class StaticPerTensor(StaticGrids):
    """One grid for all inputs."""

    kind = "static_per_tensor"
    one_grid = True

    def grid_for(self, x: Tensor) -> Grid:
        return self.grids()


class StaticPerFrame(StaticGrids):
    """One grid for each frame; the input's leading axis is samples x frames."""

    kind = "static_per_frame"

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

    kind = "static_per_step"

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat, clock: StepClock | TableClock):
        super().__init__(low, high, form)
        self.clock = clock

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> StaticPerStep:
        values = read_fields(values, f"the input of {place.name}", bits=int, symmetric=bool, grids=int)
        if place.clock is None or values["grids"] != place.clock.steps:
            raise ModelError(
                f"The checkpoint gives {place.name} a grid for each of {values['grids']} steps, and its sampler"
                f" {0 if place.clock is None else place.clock.steps} of them."
            )
        ends = torch.ones(values["grids"])
        return cls(-ends, ends, read_format(values, place.name), place.clock).to("meta")

    def grid_for(self, x: Tensor) -> Grid:
        scale, zero_point = self.clock.rows_of(self.scale, self.zero_point)
        return Grid(scale, zero_point, self.code_min, self.code_max)


class StaticSplit(StaticGrids):
    """One grid for the first `split` channels of a convolution's input, one for the rest."""

    kind = "static_split"

    def __init__(self, low: Tensor, high: Tensor, form: ActivationFormat, split: int, channels: int):
        super().__init__(low, high, form)
        self.split = split
        sizes = torch.tensor([split, channels - split], device=self.scale.device)
        self.scale, self.zero_point = (
            grids.repeat_interleave(sizes, output_size=channels) for grids in (self.scale, self.zero_point)
        )

    def describe(self) -> Description:
        return super().describe() | {"split": self.split}

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> StaticSplit:
        where, channels = f"the input of {place.name}", place.original.in_channels
        values = read_fields(values, where, bits=int, symmetric=bool, grids=int, split=int)
        if values["split"] >= channels or values["grids"] != channels:
            raise ModelError(f"The checkpoint splits {where}, of {channels} channels, at {values['split']}.")
        ends = torch.ones(2)
        return cls(-ends, ends, read_format(values, place.name), values["split"], channels).to("meta")

    def grid_for(self, x: Tensor) -> Grid:
        return _along(self.grids(), x.dim(), 1, 1)

    def parts(self) -> list[GridQuantizer]:
        """What quantizes the first channels, and what the rest."""
        ends = (slice(1), slice(-1, None))
        return [OneGrid(Grid(self.scale[e], self.zero_point[e], self.code_min, self.code_max)) for e in ends]


class OneGrid(GridQuantizer):
    """A given grid for all of a tensor."""

    exact = ("scale", "zero_point")
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

    Or does anything else that they all would do with it: `quantizer` is any module of one input.

    Each thread remembers its own last input, and what became of it until the last reader has come.
    """

    quantizer: Any

    def __init__(self, quantizer: nn.Module, readers: int):
        super().__init__()
        self.quantizer, self.readers = quantizer, readers
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}  # what a thread remembers belongs to it alone

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._last = threading.local()

    def describe(self) -> Description:
        return {"kind": "once_per_input", "readers": self.readers, "quantizer": self.quantizer.describe()}

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> OncePerInput:
        values = read_fields(values, f"the input of {place.name}", readers=int, quantizer=dict)
        if values["quantizer"].get("kind") == "once_per_input":
            raise ModelError(f"The checkpoint shares the input of {place.name} twice over.")
        return cls(rebuild_quantizer(values["quantizer"], place), values["readers"])

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
        self.form, self.layer_kind = form, kind
        ends = make_grid(torch.zeros(1), torch.ones(1), form.bits, form.symmetric)
        self.code_min, self.code_max = ends.code_min, ends.code_max
        self.axes: tuple[int, ...] = (-1,) if kind == "linear" else tuple(range(1, 2 + int(kind[-2])))

    def describe(self) -> Description:
        return {"kind": "dynamic_per_token", "bits": self.form.bits, "symmetric": self.form.symmetric}

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> DynamicPerToken:
        values = read_fields(values, f"the input of {place.name}", bits=int, symmetric=bool)
        return cls(read_format(values, place.name, range="dynamic_per_token"), place.kind)

    def grid_for(self, x: Tensor) -> Grid:
        # Grids in fp32 whatever the input: bf16 cannot tell codes beyond 256 apart.
        low, high = x.amin(self.axes, keepdim=True).float(), x.amax(self.axes, keepdim=True).float()
        return make_grid(low, high, self.form.bits, self.form.symmetric)


class DynamicSplit(nn.Module):
    """The first `split` channels of a convolution's input and the rest, each on grids of their own."""

    def __init__(self, quantizer: DynamicPerToken, split: int):
        super().__init__()
        self.quantizer, self.split = quantizer, split

    def describe(self) -> Description:
        return self.quantizer.describe() | {"kind": "dynamic_split", "split": self.split}

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> DynamicSplit:
        values = read_fields(values, f"the input of {place.name}", bits=int, symmetric=bool, split=int)
        whole = {name: values[name] for name in ("bits", "symmetric")}
        return cls(DynamicPerToken.rebuild(whole, place), values["split"])

    def parts(self) -> list[GridQuantizer]:
        """What quantizes the first channels, and what the rest."""
        return [self.quantizer, self.quantizer]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.quantizer(part) for part in (x[:, : self.split], x[:, self.split :])], 1)


class Logarithmic(ExactBuffers):
    """HiDi-TQ's grid, see `qvd_core.quantizers.logarithmic`; it keeps the tables, which define what it does.

    Attributes:
        magnitudes, thresholds: as in `LogGrid`.
    """

    exact = ("absmax", "coefficient", "magnitudes", "thresholds")
    absmax: Tensor
    coefficient: Tensor
    magnitudes: Tensor
    thresholds: Tensor

    def __init__(self, grid: LogGrid):
        super().__init__()
        self.levels, self.form, self.midpoint = grid.levels, grid.form, grid.midpoint
        for name in self.exact:
            self.register_buffer(name, getattr(grid, name))

    @property
    def grid(self) -> LogGrid:
        """What the tables were made from."""
        return LogGrid(self.absmax, self.coefficient, self.levels, self.form, self.midpoint)

    def forward(self, x: Tensor) -> Tensor:
        return logarithmic.fake_quantize(x, self)

    def describe(self) -> Description:
        kept = {"levels": self.levels, "form": self.form, "midpoint": self.midpoint}
        return {"kind": "logarithmic", **kept, "double": self.coefficient.dtype == torch.float64}

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> Logarithmic:
        where = f"the input of {place.name}"
        values = read_fields(values, where, levels=int, form=str, midpoint=bool, double=bool)
        if values["form"] not in logarithmic.FORMS:
            raise ModelError(f"The checkpoint describes {where} with a grid of unknown form {values['form']!r}.")
        absmax = torch.ones((), device="meta")
        coefficient = absmax.double() if values["double"] else absmax
        return cls(LogGrid(absmax, coefficient, values["levels"], values["form"], values["midpoint"]))


def rebuild_quantizer(values: Description, place: Place) -> nn.Module:
    """The input quantizer that describes itself as `values`, on the meta device.

    Raises:
        ModelError: no such kind, or a field that is missing, superfluous or out of range.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in QUANTIZERS:
        raise ModelError(
            f"The checkpoint describes the input of {place.name} as {kind!r}, which this version does not know; it"
            f" knows {', '.join(QUANTIZERS)}."
        )
    return QUANTIZERS[kind].rebuild(values, place)


QUANTIZERS: dict[str, Any] = {
    "static_per_tensor": StaticPerTensor,
    "static_per_frame": StaticPerFrame,
    "static_per_step": StaticPerStep,
    "static_split": StaticSplit,
    "dynamic_per_token": DynamicPerToken,
    "dynamic_split": DynamicSplit,
    "logarithmic": Logarithmic,
    "once_per_input": OncePerInput,
}
"""Every kind of input quantizer a checkpoint may name."""
