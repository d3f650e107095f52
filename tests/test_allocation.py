"""Recipes within a budget: against every recipe there is, and what they keep and cost."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from qvd_core.allocation import Allocation, allocate, pareto_front, with_bits
from qvd_core.cost import site_costs
from qvd_core.errors import QvdError, RecipeError
from qvd_core.models.sites import Site
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sensitivity import FLOAT, Sensitivity, at_bits_everywhere, bits_of, fixed_bits, proxy_sensitivity

CHOICES = ((4, 4), (4, 8), (8, 8), FLOAT)
MINMAX = get_recipe("minmax-w8a8")


def site(number: int, inputs: int) -> Site:
    name = f"blocks.{number}.to_q"
    return Site(name, "attention", "linear", "", inputs, 8, 8 * inputs + 8, True, False)


SITES = tuple(site(number, inputs) for number, inputs in enumerate((16, 64, 32, 128, 8)))
MACS = {s.name: 10 * s.in_channels * s.out_channels for s in SITES}
HAND_MADE = Sensitivity(
    "measured",
    MINMAX,
    {
        s.name: {bits: importance * error for bits, error in zip(CHOICES, (0.09, 0.05, 0.01, 0.0), strict=True)}
        for s, importance in zip(SITES, (1.0, 0.02, 0.5, 0.3, 2.0), strict=True)
    },
    0.0,
)


def totals(recipe: Recipe, sites=SITES, macs=MACS) -> tuple[int, int]:
    costs = site_costs(sites, recipe, macs)
    return sum(c.bytes_after for c in costs), sum(c.bops_after for c in costs)


def error_of(recipe: Recipe) -> float:
    return math.fsum(HAND_MADE.errors[s.name][bits_of(recipe, s)] for s in SITES)


EVERY = [
    with_bits(MINMAX, SITES, dict(zip((s.name for s in SITES), picked, strict=True)))
    for picked in itertools.product(CHOICES, repeat=len(SITES))
]


@pytest.mark.parametrize("budgets", [{"max_bytes": 1500}, {"max_bytes": 2500}, {"max_bops": 2e6}])
@pytest.mark.parametrize("loosened", [1.0, 1.1, 1.3])
def test_against_every_recipe(budgets, loosened):
    budgets = {name: loosened * value for name, value in budgets.items()}
    found = allocate(SITES, HAND_MADE, MACS, **budgets)
    limits = budgets.get("max_bytes", math.inf), budgets.get("max_bops", math.inf)
    best = min(error_of(r) for r in EVERY if all(c <= m for c, m in zip(totals(r), limits, strict=True)))
    assert found.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= found.error <= best * (1 + 1e-3)
    assert (found.bytes, found.bops) == totals(found.recipe)
    assert found.bytes <= limits[0]
    assert found.bops <= limits[1]
    assert found.error == pytest.approx(error_of(found.recipe))


def test_both_budgets_hold_together():
    found = allocate(SITES, HAND_MADE, MACS, max_bytes=2000, max_bops=1.5e6)
    assert found.bytes <= 2000
    assert found.bops <= 1.5e6
    best = min(error_of(r) for r in EVERY if totals(r)[0] <= 2000 and totals(r)[1] <= 1.5e6)
    assert found.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= found.error <= best * (1 + 1e-3)


def test_budgets_that_exclude_each_other_are_refused():
    """Few bytes take the first choice everywhere, few operations the second."""
    choices = (3, 16), (8, 4)
    either = Sensitivity("proxy", MINMAX, {s.name: dict.fromkeys(choices, 1e-3) for s in SITES}, 0.0)
    (few_bytes, _), (_, few_bops) = (totals(at_bits_everywhere(MINMAX, bits)) for bits in choices)
    assert set(allocate(SITES, either, MACS, max_bytes=few_bytes).bits.values()) == {(3, 16)}
    assert set(allocate(SITES, either, MACS, max_bops=few_bops).bits.values()) == {(8, 4)}
    with pytest.raises(RecipeError, match=r"MB and .* GBOPs together, though within each"):
        allocate(SITES, either, MACS, max_bytes=few_bytes, max_bops=few_bops)


def test_more_room_errs_less():
    errors = [allocate(SITES, HAND_MADE, MACS, max_bytes=budget).error for budget in range(1300, 4500, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1] == 0


def test_an_unlimited_budget_gives_the_best_choices():
    found = allocate(SITES, HAND_MADE, max_bytes=1e12)
    assert set(found.bits.values()) == {FLOAT}
    assert found.error == found.bound == 0
    assert found.bops is None
    within = dataclasses.replace(
        HAND_MADE, errors={name: {b: e for b, e in own.items() if b != FLOAT} for name, own in HAND_MADE.errors.items()}
    )
    assert allocate(SITES, within, max_bytes=1e12).recipe == MINMAX  # its own bits everywhere: no exceptions


@pytest.mark.parametrize("cost", ["bytes", "bops"])
def test_pareto_front(cost):
    front = pareto_front(SITES, HAND_MADE, MACS, cost=cost, points=100)
    spent = [getattr(a, cost) for a in front]
    assert spent == sorted(set(spent))
    assert [a.error for a in front] == sorted({a.error for a in front}, reverse=True)
    assert spent[0] == min(totals(r)[cost == "bops"] for r in EVERY)
    assert front[-1].error == 0
    for one in front:
        assert one.error == pytest.approx(
            min(error_of(r) for r in EVERY if totals(r)[cost == "bops"] <= getattr(one, cost))
        )
        assert one.bound == one.error


def test_a_front_of_few_points_keeps_both_ends():
    whole = pareto_front(SITES, HAND_MADE, MACS, points=100)
    for points in (2, 3, 5):
        some = pareto_front(SITES, HAND_MADE, MACS, points=points)
        assert len(some) <= points
        assert (some[0].bytes, some[-1].bytes) == (whole[0].bytes, whole[-1].bytes)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "There is no budget"),
        ({"max_bytes": 0}, "A budget of 0.000 MB is out of range; choose a positive number"),
        ({"max_bytes": -1e6}, "A budget of -1.000 MB is out of range"),
        ({"max_bytes": math.nan}, "A budget of nan MB"),
        ({"max_bops": math.inf}, "A budget of inf GBOPs"),
        ({"max_bytes": 1000}, r"0.001 MB cannot be reached with these bits: the least is 0.001 MB"),
        ({"max_bops": 1000}, r"0.000 GBOPs cannot be reached .* Raise the budget, or allow fewer bits"),
        ({"max_bytes": 1e6, "max_bops": 1000}, "GBOPs cannot be reached"),
    ],
)
def test_budgets_refused(budgets, message):
    with pytest.raises(RecipeError, match=message):
        allocate(SITES, HAND_MADE, MACS, **budgets)


def test_unknown_operations_and_costs_are_refused():
    for limited in (
        lambda: allocate(SITES, HAND_MADE, max_bops=1e9),
        lambda: pareto_front(SITES, HAND_MADE, cost="bops"),
    ):
        with pytest.raises(QvdError, match="unknown before calibration"):
            limited()
    with pytest.raises(RecipeError, match="Unknown cost 'seconds'; choose from bytes, bops"):
        pareto_front(SITES, HAND_MADE, MACS, cost="seconds")
    with pytest.raises(RecipeError, match="points = 1"):
        pareto_front(SITES, HAND_MADE, MACS, points=1)


@pytest.fixture(scope="module")
def found(mini, mini_statistics) -> Allocation:
    """On the model that ships: nearly three hundred sites."""
    sensitivity = proxy_sensitivity(mini, get_recipe("mse-w8a8"), mini_statistics, ((4, 8), (6, 8), (8, 8)))
    return allocate(mini.sites, sensitivity, mini_statistics.macs, max_bytes=6.5e6, steps=2)


def test_a_whole_model(mini, mini_statistics, found):
    base = get_recipe("mse-w8a8")
    assert found.bytes <= 6.5e6
    assert found.bytes > 6.4e6
    assert found.bound <= found.error <= 1.001 * found.bound
    assert len(set(found.bits.values())) > 2
    for one in mini.sites:
        assert bits_of(found.recipe, one) == found.bits[one.name]
        fixed = fixed_bits(base, one)
        assert fixed is None or found.bits[one.name] == fixed  # the first and the last layer
    assert found.recipe.overrides[: len(base.overrides)] == base.overrides
    assert (found.bytes, found.bops) == totals(found.recipe, mini.sites, mini_statistics.macs)


def test_the_recipe_travels(found):
    """Hundreds of exceptions through JSON and a link."""
    assert Recipe.from_dict(found.recipe.to_dict()) == found.recipe
    assert Recipe.from_query(found.recipe.to_query()) == found.recipe
    assert found.recipe.name == f"mse-w8a8+{found.bytes / 1e6:.2f}MB-{found.bops / 1e9:.4g}GBOPs"


def test_exceptions_are_few_where_a_role_agrees(mini):
    bits = {s.name: fixed_bits(get_recipe("mse-w8a8"), s) or (4, 8) for s in mini.sites}
    one = next(s for s in mini.sites if s.role == "temporal_attention")
    bits[one.name] = (6, 8)
    recipe = with_bits(get_recipe("mse-w8a8"), mini.sites, bits)
    roles = {s.role for s in mini.sites}
    assert len(recipe.overrides) == len(roles) + 1
    assert all(bits_of(recipe, s) == bits[s.name] for s in mini.sites)


def test_exceptions_of_the_recipe_are_kept(mini):
    """Whatever they match: a role with one such site gets no exception as a whole."""
    base = MINMAX.override("up_blocks.0.*", 6, 6)
    bits = {s.name: fixed_bits(base, s) or (4, 4) for s in mini.sites}
    recipe = with_bits(base, mini.sites, bits)
    assert all(bits_of(recipe, s) == bits[s.name] for s in mini.sites)
    assert {bits[s.name] for s in mini.sites if s.name.startswith("up_blocks.0.")} == {(6, 6)}


def test_bits_everywhere_leave_exceptions_alone(mini):
    recipe = at_bits_everywhere(get_recipe("qvd-w8a8"), (4, None))
    found = {s.role: bits_of(recipe, s) for s in mini.sites}
    assert found.pop("first_layer") == (8, 8)
    assert found.pop("last_layer") == (8, None)
    assert set(found.values()) == {(4, None)}
