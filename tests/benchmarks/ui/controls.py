"""Every live control of the analysis tabs: one line each. A new control is a new line here and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Control:
    """A control, and the view that follows it.

    Attributes:
        tab: the tab it is in, as its button says.
        view: `elem_id` of the view.
        elem_id: of the control.
        kind: how a visitor uses it.
        before: (elem_id, label) of what is clicked first, because the control means nothing without.
        window: height of the window in pixels; more than the usual where what changes is further down.
    """

    tab: str
    view: str
    elem_id: str
    kind: Literal["slider", "radio", "dropdown", "menu", "checkbox"]
    before: tuple[tuple[str, str], ...] = ()
    window: int = 900


SCALED = (("channels-stage", "shifted and scaled"),)
UNSEARCHED = (("temporal-search", "Search α for the least K"),)

CONTROLS = (
    Control("Channels", "map-view", "map-metric", "radio"),
    Control("Channels", "channels-view", "channels-layer", "menu"),
    Control("Channels", "channels-view", "channels-sort", "dropdown"),
    Control("Channels", "channels-view", "channels-step", "slider"),
    Control("Channels", "channels-view", "channels-frame", "slider"),
    Control("Channels", "channels-view", "channels-bits", "slider"),
    Control("Channels", "channels-view", "channels-stage", "radio"),
    Control("Channels", "channels-view", "channels-threshold", "slider", before=SCALED),
    Control("Temporal", "temporal-view", "temporal-steps", "slider"),
    Control("Temporal", "temporal-view", "temporal-bits", "slider"),
    Control("Temporal", "temporal-view", "temporal-form", "dropdown"),
    Control("Temporal", "temporal-view", "temporal-search", "checkbox"),
    Control("Temporal", "temporal-view", "temporal-coefficient", "slider", before=UNSEARCHED),
    Control("Temporal", "temporal-view", "temporal-weight", "slider", window=1500),
    Control("Temporal", "temporal-view", "temporal-radius", "slider", window=1500),
    Control("Temporal", "temporal-view", "temporal-sign", "checkbox"),
    Control("Sensitivity", "sensitivity-view", "sensitivity-cost", "radio"),
    Control("Sensitivity", "sensitivity-view", "sensitivity-budget", "slider"),
    Control("Sensitivity", "sensitivity-view", "sensitivity-bits", "radio"),
)

PLAIN = Control("", "plain-figure", "plain-step", "slider")
"""The slider of `plain_plot`, where `gr.Plot` draws what the Channels tab draws."""
