"""Bytes and bit operations in closed form, on layers made by hand."""

from __future__ import annotations

import pytest

from qvd_core.cost import site_costs
from qvd_core.formats import ActivationFormat, Override, WeightFormat
from qvd_core.models.sites import Site
from qvd_core.recipe import Recipe, get_recipe


def site(name="layer", inputs=10, outputs=6, kernel=1, bias=True) -> Site:
    parameters = inputs * outputs * kernel + (outputs if bias else 0)
    return Site(name, "linear", "linear" if kernel == 1 else "conv2d", "", inputs, outputs, parameters, bias, False)


def cost(recipe: Recipe, layer: Site | None = None, macs: dict[str, int] | None = None):
    (one,) = site_costs((layer or site(),), recipe, macs)
    return one


def weights(bits: int, symmetric: bool = True) -> Recipe:
    return Recipe("x", WeightFormat(bits, symmetric), None)


@pytest.mark.parametrize(
    ("recipe", "layer", "expected"),
    [
        # codes + 2 bytes a bias + 4 bytes a scale (+ 1 byte a zero point)
        (weights(8), site(), 60 + 2 * 6 + 4 * 6),
        (weights(4), site(), 30 + 2 * 6 + 4 * 6),
        (weights(8, symmetric=False), site(), 60 + 2 * 6 + 4 * 6 + 6),
        (weights(8), site(bias=False), 60 + 4 * 6),
        (weights(4), site(kernel=9), 270 + 2 * 6 + 4 * 6),
        # 7 weights of 3 bits are 21 bits, which take 3 bytes.
        (weights(3), site(inputs=7, outputs=1, bias=False), 3 + 4),
        (Recipe("x", None, ActivationFormat(8)), site(), 2 * 66),
    ],
    ids=["w8", "w4", "w8-affine", "no-bias", "convolution", "packed", "float-weights"],
)
def test_bytes(recipe, layer, expected):
    one = cost(recipe, layer)
    assert one.bytes_before == 2 * layer.parameters
    assert one.bytes_after == expected


@pytest.mark.parametrize(
    ("recipe", "weight_bits", "activation_bits"),
    [
        (get_recipe("minmax-w8a8"), 8, 8),
        (get_recipe("minmax-w4a8"), 4, 8),
        (weights(2), 2, None),
        (Recipe("x", None, ActivationFormat(6)), None, 6),
        (Recipe("x", None, None), None, None),
        (get_recipe("minmax-w8a8").override("layer", 4, None), 4, None),
        (Recipe("x", WeightFormat(4), None, (Override("linear", 8, 8),)), 8, 8),
    ],
    ids=["w8a8", "w4a8", "weights-only", "inputs-only", "float", "override-by-path", "override-by-role"],
)
def test_bit_operations(recipe, weight_bits, activation_bits):
    one = cost(recipe, macs={"layer": 1000})
    assert (one.weight_bits, one.activation_bits) == (weight_bits, activation_bits)
    assert one.bops_before == 1000 * 16 * 16
    assert one.bops_after == 1000 * (weight_bits or 16) * (activation_bits or 16)


def test_floating_point_costs_what_it_did():
    one = cost(Recipe("x", None, None), macs={"layer": 5})
    assert one.bytes_after == one.bytes_before
    assert one.bops_after == one.bops_before


def test_operations_are_unknown_before_calibration_and_zero_where_nothing_ran():
    unknown = cost(get_recipe("minmax-w8a8"))
    assert (unknown.macs, unknown.bops_before, unknown.bops_after) == (None, None, None)
    idle = cost(get_recipe("minmax-w8a8"), macs={"another layer": 7})
    assert (idle.macs, idle.bops_before, idle.bops_after) == (0, 0, 0)


def test_one_row_per_site_in_their_order(model, statistics):
    costs = site_costs(model.sites, get_recipe("minmax-w4a8"), statistics.macs)
    assert tuple(c.site for c in costs) == model.sites
    assert sum(c.bops_before for c in costs) == 8 * sum(c.bops_after for c in costs)
    assert sum(c.bytes_after for c in costs) < sum(c.bytes_before for c in costs)
