"""One option for each of many sites, the sum of errors least, the sums of costs within budgets.

A multiple-choice knapsack problem. Options off the lower convex hull of a site's (cost, error) pairs are set
aside; steps along all hulls are taken in order of error saved per cost; those that no longer fit are passed
over, and what is left of the budgets is spent on any single change that fits. If sites could be divided among
options, the same order would give the optimum, and that bounds the error of every solution from below. With
one budget, the error found exceeds the bound by at most what the first step that did not fit would have saved.

With two budgets the cost is a weighted sum of both, each as a share of its budget, and the best solution over
`WEIGHTS` is kept [choice]. The bound stays one: what is within both budgets is within any mean of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

WEIGHTS = tuple(1 / (1 + 10 ** (i / 8)) for i in range(-24, 25))
"""Of the second cost against the first: 0.001 to 0.999, evenly spaced in the logarithm of their ratio."""


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

    @property
    def slope(self) -> float:
        return self.saved / self.cost


def total_error(options: Sequence[Sequence[Option]], pick: Sequence[int]) -> float:
    return math.fsum(own[number].error for own, number in zip(options, pick, strict=True))


def path(options: Sequence[Sequence[Option]], prices: Sequence[float]) -> tuple[list[int], list[Step]]:
    """The cheapest option of every site, and all steps along their hulls by falling error saved per cost.

    Args:
        options: by site, one or more each.
        prices: of one unit of each cost, 0 or more.
    """
    start, steps = [], []
    for site, own in enumerate(options):
        points = [(_cost(option, prices), option.error) for option in own]
        hull = lower_hull(points)
        start.append(hull[0])
        for before, after in itertools.pairwise(hull):
            (cost, error), (more, less) = points[before], points[after]
            steps.append(Step(site, after, more - cost, error - less))
    return start, sorted(steps, key=lambda step: -step.slope)  # hulls get flatter, so each site's stay in order


def lower_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, error) on the falling part of their lower convex hull, from the cheapest on."""
    hull: list[int] = []

    def slope(a: int, b: int) -> float:
        return (points[a][1] - points[b][1]) / (points[b][0] - points[a][0])

    for number in sorted(range(len(points)), key=points.__getitem__):
        if hull and points[number][1] >= points[hull[-1]][1]:
            continue
        if hull and points[number][0] == points[hull[-1]][0]:
            continue
        while len(hull) > 1 and slope(hull[-1], number) >= slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(number)
    return hull


def fill(options: Sequence[Sequence[Option]], budgets: Sequence[float]) -> tuple[list[int], float] | None:
    """Choose an option for every site.

    Args:
        options: by site, one or more each, with a cost for each budget.
        budgets: one or two, positive.

    Returns:
        The options' indices, and a bound from below on the summed error of all choices within the budgets, to
        rounding. None if no choice was found; with one budget there is none then.
    """
    weights = [(1.0,)] if len(budgets) == 1 else [(1 - w, w) for w in WEIGHTS]
    found = []
    for weight in weights:
        prices = [w / budget for w, budget in zip(weight, budgets, strict=True)]
        solution = _fill_at(options, prices, budgets)
        found += [] if solution is None else [solution]
    if not found:
        return None
    pick = min((pick for pick, _ in found), key=lambda pick: total_error(options, pick))
    return pick, max(bound for _, bound in found)


def _fill_at(
    options: Sequence[Sequence[Option]], prices: Sequence[float], budgets: Sequence[float]
) -> tuple[list[int], float] | None:
    """`fill` at given prices; None if the cheapest options are beyond a budget."""
    pick, steps = path(options, prices)
    left = [
        budget - sum(own[i].costs[kind] for own, i in zip(options, pick, strict=True))
        for kind, budget in enumerate(budgets)
    ]
    if min(left) < 0:
        return None

    def taken(site: int, option: int) -> bool:
        now, new = options[site][pick[site]].costs, options[site][option].costs
        after = [room - cost + back for room, cost, back in zip(left, new, now, strict=True)]
        if min(after) < 0:
            return False
        left[:], pick[site] = after, option
        return True

    slope, closed = 0.0, set[int]()
    for step in steps:
        if step.site not in closed and not taken(step.site, step.option):
            slope = slope or step.slope
            closed.add(step.site)
    bound = _relaxed(options, prices, slope)
    while True:
        better = sorted(
            (
                (own[pick[site]].error - option.error, site, number)
                for site, own in enumerate(options)
                for number, option in enumerate(own)
                if option.error < own[pick[site]].error
            ),
            reverse=True,
        )
        if not any(taken(site, number) for _, site, number in better):
            return pick, bound


def _relaxed(options: Sequence[Sequence[Option]], prices: Sequence[float], slope: float) -> float:
    """The Lagrangian at `slope` error per cost, the budgets together costing 1."""
    return math.fsum(min(o.error + slope * _cost(o, prices) for o in own) for own in options) - slope


def _cost(option: Option, prices: Sequence[float]) -> float:
    return math.fsum(price * cost for price, cost in zip(prices, option.costs, strict=True))
