"""What methods let one choose: early refusals that echo what came in, and values that can be keys."""

from __future__ import annotations

import dataclasses
import math

import pytest

from qvd_core.errors import RecipeError
from qvd_core.formats import HTDQ, ActivationFormat, ChannelBalancing, ShiftAndScale, Tabulated, TemporalBlock, matches


@pytest.mark.parametrize("method", [HTDQ(), TemporalBlock(), Tabulated(), ShiftAndScale(), ChannelBalancing()], ids=str)
def test_methods_are_values(method):
    assert hash(method) == hash(dataclasses.replace(method))
    assert method == dataclasses.replace(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.method = "other"


def test_methods_have_names_of_their_own():
    kinds = HTDQ, TemporalBlock, Tabulated, ShiftAndScale, ChannelBalancing
    assert len({kind.method for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("kind", [HTDQ, TemporalBlock, Tabulated, ShiftAndScale, ChannelBalancing])
def test_a_methods_name_is_no_option(kind):
    """Otherwise ChannelBalancing(0.2) is taken for one of strength 0.5, as it is a method named 0.2."""
    with pytest.raises(TypeError):
        kind(method=kind.method)


def test_options_go_by_position_too():
    assert ChannelBalancing(0.2).strength == 0.2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"form": "H4"}, "Unknown form 'H4'; choose from H1, H2, H3"),
        ({"form": ["H1"]}, "Unknown form"),
        ({"sign_inside": 1}, "sign_inside = 1 is neither true nor false"),
        ({"port": None}, "port = None is neither"),
        ({"centred": "yes"}, "centred = 'yes' is neither"),
        ({"coefficient": 0}, "coefficient = 0 leaves a single level"),
        ({"coefficient": -1}, "coefficient = -1 is out of range; choose 0 to 1000"),
        ({"coefficient": 1001}, "coefficient = 1001 is out of range"),
        ({"coefficient": math.nan}, "coefficient = nan is out of range"),
        ({"coefficient": math.inf}, "coefficient = inf is out of range"),
        ({"coefficient": "2"}, "coefficient = '2' is out of range"),
        ({"coefficient": True}, "coefficient = True is out of range"),
        ({"discriminability_weight": -0.1}, "discriminability_weight = -0.1 is out of range"),
        ({"discriminability_weight": math.inf}, "discriminability_weight = inf is out of range"),
        ({"radius": 0}, "radius = 0 is out of range; choose a whole number from 1 to 1000"),
        ({"radius": 1.0}, "radius = 1.0 is out of range"),
        ({"radius": True}, "radius = True is out of range"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_htdq_out_of_range(values, message):
    with pytest.raises(RecipeError, match=message):
        HTDQ(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shift": False, "scale": False}, "Neither shift nor scale is on"),
        ({"shift": 1}, "shift = 1 is neither"),
        ({"scale": None}, "scale = None is neither"),
        ({"sites": "linear"}, "sites = 'linear' names no"),
        ({"sites": ()}, r"sites = \(\) names no"),
        ({"sites": ("",)}, "names no"),
        ({"sites": ("conv_in", 3)}, "names no"),
        ({"sites": ["linear"]}, "names no"),
        ({"steps": "last"}, "Unknown steps 'last'; choose from all, first"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_shift_and_scale_out_of_range(values, message):
    with pytest.raises(RecipeError, match=message):
        ShiftAndScale(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 1.01}, "strength = 1.01 is out of range; choose 0 to 1"),
        ({"strength": -0.5}, "strength = -0.5 is out of range"),
        ({"strength": math.nan}, "strength = nan is out of range"),
        ({"strength": None}, "strength = None is out of range"),
        ({"strength": True}, "strength = True is out of range"),
        ({"sites": "*"}, "names no"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_channel_balancing_out_of_range(values, message):
    with pytest.raises(RecipeError, match=message):
        ChannelBalancing(**values)


@pytest.mark.parametrize("search", ["max", "", None, ["mse"]], ids=repr)
def test_unknown_range_searches(search):
    with pytest.raises(RecipeError, match=r"Unknown range search .*; choose from min_max, mse, mse_by_step"):
        ActivationFormat(8, search=search)


@pytest.mark.parametrize("kind", ["static_per_tensor", "static_per_frame", "static_per_step"])
def test_static_ranges_need_statistics(kind):
    assert ActivationFormat(8, kind).needs_statistics
    assert not ActivationFormat(8, "dynamic_per_token").needs_statistics


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [("*", True), ("linear", True), ("a.b.*", True), ("a.b", False), ("*.c", True), ("lin*", False), ("A.b.c", False)],
)
def test_what_a_pattern_means(pattern, hit):
    assert matches(pattern, "a.b.c", "linear") is hit
