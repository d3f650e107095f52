"""Every live control of the analysis tabs: one line each. A new control is a new line here and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Control:
    """A control, and the figures that must change when it does.

    Attributes:
        tab: the tab it is in, as its button says.
        elem_id: of the control.
        kind: how a visitor uses it.
        panels: `elem_id` of every figure panel it redraws.
        every: of a menu, only every so many entries are chosen: for menus where neighbours draw the same figure.
    """

    tab: str
    elem_id: str
    kind: Literal["slider", "radio", "dropdown", "checkbox"]
    panels: tuple[str, ...]
    every: int = 1


CONTROLS = (
    Control("Channels", "channels-role", "dropdown", ("channels-figure",)),
    Control("Channels", "channels-layer", "dropdown", ("channels-figure",), every=3),  # q, k and v read one input
    Control("Channels", "channels-step", "slider", ("channels-figure",)),
    Control("Channels", "channels-sort", "radio", ("channels-figure",)),
    Control("Temporal", "temporal-steps", "slider", ("temporal-distribution", "temporal-before", "temporal-after")),
    Control("Temporal", "temporal-bits", "slider", ("temporal-distribution", "temporal-after")),
)

PLAIN = Control("", "plain-step", "slider", ("plain-figure",))
"""The slider of `plain_plot`, where `gr.Plot` draws what the Channels tab draws."""
