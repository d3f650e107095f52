"""Layers of the time path replaced by their outputs, one row for each step of the sampler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvd_core.errors import ModelError
from qvd_core.layers.clock import StepClock, TableClock
from qvd_core.layers.description import Description, Place, read_fields


class TabulatedLayer(nn.Module):
    """Looks up what a linear layer gives at the step now computed, instead of computing it.

    Attributes:
        outputs: [steps, out], in the dtype of the layer.
    """

    outputs: Tensor

    def __init__(self, outputs: Tensor, clock: StepClock):
        super().__init__()
        self.register_buffer("outputs", outputs)
        self.clock = clock

    def forward(self, input: Tensor) -> Tensor:
        """The step's row for every one of the inputs [..., in]."""
        return self.outputs[self.clock.step].expand(*input.shape[:-1], -1)

    def describe(self) -> Description:
        return {"kind": "tabulated"}

    @classmethod
    def rebuild(cls, values: Description, place: Place) -> TabulatedLayer:
        """An empty table of as many rows as the clock has steps, on the meta device."""
        read_fields(values, place.name)
        if place.clock is None or place.kind != "linear":
            raise ModelError(f"The checkpoint tabulates {place.name} ({place.kind}) without a sampler's steps.")
        weight = place.original.weight
        return cls(torch.empty(place.clock.steps, len(weight), dtype=weight.dtype, device="meta"), place.clock)


class StepTable(nn.Module):
    """A layer's outputs where the timestep is one of the sampler's, and the layer itself where it is not.

    Attributes:
        outputs: [steps, out], in the dtype of the layer.
    """

    outputs: Tensor

    def __init__(self, layer: nn.Module, outputs: Tensor, clock: TableClock):
        super().__init__()
        self.layer, self.clock = layer, clock
        self.register_buffer("outputs", outputs)

    def forward(self, input: Tensor) -> Tensor:
        if not self.clock.known:
            computed: Tensor = self.layer(input)
            return computed
        (row,) = self.clock.rows_of(self.outputs)
        return row[0].expand(*input.shape[:-1], -1)
