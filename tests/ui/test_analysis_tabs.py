"""What the tabs' views answer to anybody: an answer, or a refusal that says what is wrong; never an exception."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr
import pytest

from qvd_core.calibration.statistics import Statistics
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import get_recipe
from tests.ui.pages import analysis_tabs, answered, asked, serving

TEMPORAL = {
    "steps": 4,
    "bits": 4,
    "form": "H1",
    "search": True,
    "coefficient": 0,
    "weight": 1,
    "radius": 2,
    "sign": True,
}
SENSITIVITY = {"cost": "bytes", "budget": 40, "bits": "w4a8"}
JUNK = [None, "", "../../etc/passwd", -1, 10**400, 1.5, math.nan, math.inf, [], {}, ["as it is"]]


def channels(model: VideoModel) -> dict[str, Any]:
    layer = next(site.name for site in model.sites if site.role == "temporal_attention")
    return {
        "layer": layer,
        "step": 1,
        "frame": 1,
        "bits": 8,
        "sort": "range",
        "stage": "shifted and scaled",
        "threshold": 0.5,
    }


def choices_of(view: str, model: VideoModel) -> dict[str, Any]:
    return {
        "map-view": {"metric": "coverage"},
        "channels-view": channels(model),
        "temporal-view": TEMPORAL,
        "similarity-view": TEMPORAL,
        "sensitivity-view": SENSITIVITY,
    }[view]


VIEWS = ["map-view", "channels-view", "temporal-view", "similarity-view", "sensitivity-view"]


@pytest.fixture(scope="module")
def demo(model: VideoModel, statistics: Statistics) -> gr.Blocks:
    registry = serving(model)
    registry.keep_statistics(model, statistics)
    return analysis_tabs(registry)


@pytest.mark.parametrize("view", VIEWS)
def test_every_answer_can_be_sent(demo: gr.Blocks, model: VideoModel, view: str) -> None:
    found = answered(demo, view, asked(model, choices_of(view, model)))
    assert set(found) == {"slots"}, found


@pytest.mark.parametrize("view", VIEWS)
def test_junk_in_any_control_is_refused(demo: gr.Blocks, model: VideoModel, view: str) -> None:
    good = choices_of(view, model)
    for control in good:
        for junk in JUNK:
            if isinstance(good[control], float) and junk == 1.5:
                continue
            found = answered(demo, view, asked(model, {**good, control: junk}))
            assert set(found) == {"error"} or _means_something(control, junk), (control, junk, set(found))
        fewer = {name: value for name, value in good.items() if name != control}
        assert set(answered(demo, view, asked(model, fewer))) == {"error"}, control


def _means_something(control: str, junk: Any) -> bool:
    """α as a power of two and λ are any numbers, within reason."""
    return control in ("coefficient", "weight") and junk in (-1, 1.5)


@pytest.mark.parametrize("view", ["map-view", "channels-view", "sensitivity-view"])
def test_without_statistics_a_view_says_how_to_get_them(model: VideoModel, view: str) -> None:
    demo = analysis_tabs(serving(model))
    message = answered(demo, view, asked(model, choices_of(view, model)))["error"]
    assert "has not been calibrated" in message
    assert "Generate once in the Compare tab" in message


def test_a_model_without_temporal_features_is_told_apart(wan: VideoModel) -> None:
    demo = analysis_tabs(serving(wan))
    recipe = get_recipe("dynamic-w8a8")
    message = answered(demo, "temporal-view", asked(wan, TEMPORAL, recipe))["error"]
    assert "no layers known to take temporal features" in message


def test_views_follow_every_control_they_ask_about(demo: gr.Blocks) -> None:
    """A control without a change event would move and change nothing."""
    counts = {"map-view": 1, "channels-view": 7, "temporal-view": 8, "similarity-view": 8, "sensitivity-view": 3}
    for view, count in counts.items():
        moved = [one.js for one in demo.fns.values() if isinstance(one.js, str) and f"['{view}']" in one.js]
        assert len(moved) == count, view
