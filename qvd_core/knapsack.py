"""One option for each of many sites, the sum of errors least, the sums of costs within budgets.

A multiple-choice knapsack problem. Within budgets it is solved as the integer programme it is, by HiGHS through
scipy: a variable of 0 or 1 for each option, one option per site. For the few hundred sites of a denoiser that takes a
second, and what is found is the optimum to `GAP`. The whole front of one cost follows without a solver:
options off the lower convex hull of a site's (cost, error) pairs are set aside, and steps along all hulls are
taken in order of error saved per cost. Every sum passed on the way is the least for its own cost, since it
is also the optimum of the problem that allows fractions of options.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

GAP = 1e-4
"""Relative distance to the optimum at which the solver may stop."""
SECONDS = 60.0
"""After which it gives the best it has, with the bound it has."""
LARGEST = 1e9
"""Error, in units of about the optimum, beyond which one option is as bad as another."""
BUDGET_UNITS = 1e6
"""What a budget is scaled to, so that the solver's tolerance of 1e-6 is less than a byte or bit operation."""


@dataclass(frozen=True)
class Option:
    """What a site may be: its error, and its costs in the order of the budgets; all 0 or more."""

    error: float
    costs: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """From one option of a site's hull to the next dearer one.

    Attributes:
        site, option: indices; the option is the new one.
        cost, saved: positive differences of cost and error.
    """

    site: int
    option: int
    cost: float
    saved: float


def total_error(options: Sequence[Sequence[Option]], pick: Sequence[int]) -> float:
    return math.fsum(own[number].error for own, number in zip(options, pick, strict=True))


def fill(options: Sequence[Sequence[Option]], budgets: Sequence[float]) -> tuple[list[int], float] | None:
    """Choose an option for every site.

    Args:
        options: by site, one or more each, with a cost for each budget.
        budgets: positive.

    Returns:
        The options' indices, and a bound: no choice within the budgets has a smaller summed error, to
        rounding. None if there is no choice within the budgets, or none was found in time.
    """
    flat = [(site, option) for site, own in enumerate(options) for option in own]
    errors = np.array([option.error for _, option in flat])
    costs = np.array([[c / b * BUDGET_UNITS for c, b in zip(option.costs, budgets, strict=True)] for _, option in flat])
    member = csr_matrix((np.ones(len(flat)), ([site for site, _ in flat], range(len(flat)))))
    constraints = [LinearConstraint(member, 1, 1), LinearConstraint(csr_matrix(costs.T), -np.inf, BUDGET_UNITS)]
    unit = float(errors.max()) or 1.0
    while True:
        solution = milp(
            np.minimum(errors / unit, LARGEST),
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
        if solution.x is None:
            return None
        chosen = solution.x > 0.5
        least = float(errors[chosen].sum())
        if least == 0 or least > unit / 100:
            break
        unit = least  # the solver's tolerances are absolute, so errors should be about 1
    numbers = [number for own in options for number in range(len(own))]
    return [numbers[i] for i in np.flatnonzero(chosen)], min(solution.mip_dual_bound * unit, least)


def path(options: Sequence[Sequence[Option]]) -> tuple[list[int], list[Step]]:
    """The cheapest option of every site, and all steps along their hulls by falling error saved per cost.

    Args:
        options: by site, one or more each, with one cost.
    """
    start, steps = [], []
    for site, own in enumerate(options):
        points = [(option.costs[0], option.error) for option in own]
        hull = lower_hull(points)
        start.append(hull[0])
        for before, after in itertools.pairwise(hull):
            (cost, error), (more, less) = points[before], points[after]
            steps.append(Step(site, after, more - cost, error - less))
    return start, sorted(steps, key=lambda step: -step.saved / step.cost)  # hulls get flatter: a site's stay in order


def lower_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, error) on the falling part of their lower convex hull, from the cheapest on."""
    hull: list[int] = []

    def slope(a: int, b: int) -> float:
        return (points[a][1] - points[b][1]) / (points[b][0] - points[a][0])

    for number in sorted(range(len(points)), key=points.__getitem__):
        if hull and points[number][1] >= points[hull[-1]][1]:
            continue
        while len(hull) > 1 and slope(hull[-1], number) >= slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(number)
    return hull
