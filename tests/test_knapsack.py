"""What is chosen against every choice there is, on small problems."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from qvd_core.knapsack import GAP, Option, fill, lower_hull, path, total_error


def problem(seed: int, sites: int, choices: int, kinds: int) -> list[list[Option]]:
    """Random options; dearer ones err less on average, not always."""
    draw = random.Random(seed)
    made = []
    for _ in range(sites):
        scale, size = 10 ** draw.uniform(-3, 0), draw.randint(10, 1000)
        made.append(
            [
                Option(
                    scale * 4.0 ** -(n + draw.uniform(-0.7, 0.7)),
                    tuple(float(round(size * (n + 1) * draw.uniform(0.8, 1.2))) for _ in range(kinds)),
                )
                for n in range(choices)
            ]
        )
    return made


def best(options: list[list[Option]], budgets: tuple[float, ...]) -> float:
    """By trying everything; infinite if nothing fits."""
    least = math.inf
    for pick in itertools.product(*(range(len(own)) for own in options)):
        costs = [sum(own[i].costs[k] for own, i in zip(options, pick, strict=True)) for k in range(len(budgets))]
        if all(cost <= budget for cost, budget in zip(costs, budgets, strict=True)):
            least = min(least, total_error(options, pick))
    return least


def ends(options: list[list[Option]], kind: int = 0) -> tuple[float, float]:
    """The least and the largest cost."""
    least, most = (sum(f(o.costs[kind] for o in own) for own in options) for f in (min, max))
    return least, most


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_one_budget(seed, share):
    options = problem(seed, sites=5, choices=4, kinds=1)
    low, high = ends(options)
    budget = low + share * (high - low)
    solution = fill(options, (budget,))
    assert solution is not None
    pick, bound = solution
    assert sum(own[i].costs[0] for own, i in zip(options, pick, strict=True)) <= budget
    error, optimum = total_error(options, pick), best(options, (budget,))
    assert bound <= optimum * (1 + 1e-12) + 1e-15
    assert optimum * (1 - 1e-12) <= error <= optimum * (1 + 2 * GAP)
    assert bound >= optimum * (1 - 2 * GAP)
    if share == 1:
        assert error == pytest.approx(sum(min(o.error for o in own) for own in options))


@pytest.mark.parametrize("shares", [(0.2, 0.6), (0.6, 0.2), (0.4, 0.4), (1.0, 0.3)])
@pytest.mark.parametrize("seed", range(4))
def test_two_budgets(seed, shares):
    options = problem(seed, sites=5, choices=4, kinds=2)
    budgets = tuple(
        low + share * (high - low)
        for share, (low, high) in zip(shares, (ends(options, k) for k in (0, 1)), strict=True)
    )
    solution = fill(options, budgets)
    assert solution is not None
    pick, bound = solution
    for kind, budget in enumerate(budgets):
        assert sum(own[i].costs[kind] for own, i in zip(options, pick, strict=True)) <= budget
    optimum = best(options, budgets)
    assert bound <= optimum * (1 + 1e-12) + 1e-15
    assert optimum * (1 - 1e-12) <= total_error(options, pick) <= optimum * (1 + 2 * GAP)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_of_many_sites_the_bound_is_reached_whatever_the_unit(scale):
    options = [[Option(scale * o.error, o.costs) for o in own] for own in problem(1, sites=300, choices=6, kinds=2)]
    budgets = tuple((low + high) / 3 for low, high in (ends(options, kind) for kind in (0, 1)))
    solution = fill(options, budgets)
    assert solution is not None
    pick, bound = solution
    assert bound <= total_error(options, pick) <= (1 + 2 * GAP) * bound
    for kind, budget in enumerate(budgets):
        assert sum(own[i].costs[kind] for own, i in zip(options, pick, strict=True)) <= budget


def test_errors_of_many_magnitudes():
    """What is small beside the largest error is still chosen well once that is gone."""
    draw = random.Random(2)
    sizes = [10.0 ** -draw.uniform(0, 12) for _ in range(8)]
    options = [[Option(size, (1.0,)), Option(size / 100, (2.0,)), Option(0.0, (3.0,))] for size in sizes]
    for budget in range(8, 25):
        solution = fill(options, (float(budget),))
        assert solution is not None
        assert total_error(options, solution[0]) == pytest.approx(best(options, (budget,)), rel=2 * GAP)


def test_an_option_of_endless_error_is_taken_only_if_it_must_be():
    options = [[Option(3e38, (1.0,)), Option(1e-6, (2.0,)), Option(1e-8, (3.0,))] for _ in range(4)]
    assert fill(options, (9.0,))[0].count(2) == 1
    assert fill(options, (4.0,))[0] == [0, 0, 0, 0]


@pytest.mark.parametrize("budgets", [(4.9, 9.0), (9.0, 4.9), (5.5, 5.5)], ids=["first", "second", "both"])
def test_nothing_fits(budgets):
    assert fill([[Option(1.0, (5.0, 7.0)), Option(0.5, (7.0, 5.0))]], budgets) is None


def test_a_budget_is_met_exactly():
    options = [[Option(1.0, (148030619648.0,)), Option(0.5, (148030619649.0,))]]
    assert fill(options, (148030619648.0,))[0] == [0]
    assert fill(options, (148030619649.0,))[0] == [1]


def test_every_point_of_the_path_is_the_best_for_its_cost():
    options = problem(3, sites=5, choices=4, kinds=1)
    pick, steps = path(options)
    slopes = [step.saved / step.cost for step in steps]
    assert slopes == sorted(slopes, reverse=True)
    for step in [None, *steps]:
        if step is not None:
            pick[step.site] = step.option
        cost = sum(own[i].costs[0] for own, i in zip(options, pick, strict=True))
        assert total_error(options, pick) == pytest.approx(best(options, (cost,)), rel=1e-9)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 5)], [0]),
        ([(2, 1), (1, 5)], [1, 0]),
        ([(1, 5), (2, 4), (3, 1)], [0, 2]),  # above the line
        ([(1, 5), (2, 3), (3, 1)], [0, 2]),  # on it
        ([(1, 5), (2, 2), (3, 1)], [0, 1, 2]),
        ([(1, 5), (2, 6), (3, 5)], [0]),  # dearer and no better
        ([(1, 5), (1, 3), (2, 2)], [1, 2]),  # as cheap and better
        ([(0, 0), (0, 0)], [0]),
    ],
)
def test_hull(points, expected):
    assert lower_hull(points) == expected
