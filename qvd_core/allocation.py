"""Bits for every site under a budget: the recipe of least summed error, and the front of all such recipes.

The error of a recipe is taken to be the sum of what its sites cost alone (`sensitivity`), as in HAWQ-V2 (arXiv
1911.03852) and in HAWQ-V3 (arXiv 2011.10680), whose integer programme has budgets of size and of BOPs; ViDiT-Q
(arXiv 2406.02540) chooses the bits of video transformers so. It holds while errors are small and
unrelated, and is an assumption: `compare` tells what comes of it. `knapsack` finds the least sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from qvd_core.cost import site_costs
from qvd_core.errors import RecipeError
from qvd_core.knapsack import Option, fill, path, total_error
from qvd_core.models.sites import Site
from qvd_core.recipe import Recipe
from qvd_core.sensitivity import Bits, Sensitivity, at_bits_everywhere, bits_of, fixed_bits

COSTS = ("bytes", "bops")


@dataclass(frozen=True, eq=False)
class Allocation:
    """A recipe and what it is predicted to cost.

    Attributes:
        recipe: the one the sensitivity is of, with exceptions where bits differ from its own; where there are
            any, its name says what it costs: "qvd-w8a8+5.98MB", with "-40.2GBOPs" if those are known.
        bits: of every site.
        error: sum of the sites' errors, dimensionless.
        bytes: of weights, as `site_costs` counts them.
        bops: of one denoiser call; None if multiply-accumulates are unknown.
        bound: to rounding, no recipe of the same choices within the same budgets has a smaller sum.
    """

    recipe: Recipe
    bits: dict[str, Bits]
    error: float
    bytes: int
    bops: int | None
    bound: float


def allocate(
    sites: tuple[Site, ...],
    sensitivity: Sensitivity,
    macs: Mapping[str, int] | None = None,
    *,
    max_bytes: float | None = None,
    max_bops: float | None = None,
    steps: int = 25,
) -> Allocation:
    """The recipe of least summed error within one or two budgets.

    Sites whose bits the recipe fixes by an exception keep them, and count.

    Args:
        sites: of the model the sensitivity is of.
        sensitivity: what there is to choose from.
        macs, steps: as in `site_costs`; BOPs need the former.
        max_bytes: of weights; None for any number.
        max_bops: of one denoiser call; None for any number.

    Raises:
        RecipeError: there is no budget, it is no positive number, or less than the least possible, which the
            message states; or BOPs are limited and unknown.
    """
    budgets = check_budgets(max_bytes, max_bops)
    options = _options(sites, sensitivity, macs, tuple(budgets), steps)
    for number, (kind, budget) in enumerate(budgets.items()):
        least = sum(min(option.costs[number] for option in own) for own in options)
        if budget < least:
            raise RecipeError(
                f"{_in_words(kind, budget)} cannot be reached with these bits: the least is {_in_words(kind, least)}."
                " Raise the budget, or allow fewer bits."
            )
    solution = fill(options, tuple(budgets.values()))
    if solution is None:
        together = " and ".join(_in_words(kind, budget) for kind, budget in budgets.items())
        raise RecipeError(f"No recipe was found within {together} together, though within each; raise one of them.")
    pick, bound = solution
    return _allocation(sites, sensitivity, macs, steps, pick, total_error(options, pick), bound)


def check_budgets(max_bytes: float | None, max_bops: float | None) -> dict[str, float]:
    """The budgets there are, by kind of cost.

    Raises:
        RecipeError: there is none, or it is no positive number.
    """
    budgets = {kind: budget for kind, budget in zip(COSTS, (max_bytes, max_bops), strict=True) if budget is not None}
    if not budgets:
        raise RecipeError("There is no budget: limit the bytes of weights, the bit operations, or both.")
    for kind, budget in budgets.items():
        if not (math.isfinite(budget) and budget > 0):
            raise RecipeError(f"A budget of {_in_words(kind, budget)} is out of range; choose a positive number.")
    return budgets


def pareto_front(
    sites: tuple[Site, ...],
    sensitivity: Sensitivity,
    macs: Mapping[str, int] | None = None,
    *,
    cost: str = "bytes",
    points: int = 33,
    steps: int = 25,
) -> list[Allocation]:
    """Recipes from the cheapest to the one of least error, each of least summed error for its own cost.

    There are more such recipes: these are the ones on the convex hull of all.

    Args:
        sites, sensitivity, macs, steps: as in `allocate`.
        cost: "bytes" or "bops"; the other one is whatever comes of it.
        points: at most so many, about evenly spaced in cost; at least 2.

    Raises:
        RecipeError: another cost, fewer than two points, or unknown BOPs.
    """
    if cost not in COSTS:
        raise RecipeError(f"Unknown cost {cost!r}; choose from {', '.join(COSTS)}.")
    if points < 2:
        raise RecipeError(f"points = {points} is out of range; choose 2 or more.")
    options = _options(sites, sensitivity, macs, (cost,), steps)
    pick, taken = path(options)
    spacing = math.fsum(step.cost for step in taken) / (points - 1)
    front, spent, marks = [], 0.0, 0
    for number, step in enumerate([None, *taken]):
        if step is not None:
            pick[step.site] = step.option
            spent += step.cost
        passed = int(spent / spacing) if spacing else 0
        if passed > marks or number in (0, len(taken)):
            marks = passed
            error = total_error(options, pick)
            front.append(_allocation(sites, sensitivity, macs, steps, pick, error, error))
    return front


def _options(
    sites: tuple[Site, ...],
    sensitivity: Sensitivity,
    macs: Mapping[str, int] | None,
    kinds: tuple[str, ...],
    steps: int,
) -> list[list[Option]]:
    """The choices of every site, in the order of the table, with the costs of these kinds.

    Raises:
        RecipeError: BOPs are asked for and unknown.
    """
    if "bops" in kinds and macs is None:
        raise RecipeError("Bit operations are unknown before calibration; calibrate the model, or limit bytes alone.")
    choices = dict.fromkeys(bits for errors in sensitivity.errors.values() for bits in errors)
    costs = {bits: site_costs(sites, at_bits_everywhere(sensitivity.recipe, bits), macs, steps) for bits in choices}
    return [
        [
            Option(error, tuple(getattr(costs[bits][number], f"{kind}_after") for kind in kinds))
            for bits, error in sensitivity.errors[site.name].items()
        ]
        for number, site in enumerate(sites)
    ]


def _allocation(
    sites: tuple[Site, ...],
    sensitivity: Sensitivity,
    macs: Mapping[str, int] | None,
    steps: int,
    pick: list[int],
    error: float,
    bound: float,
) -> Allocation:
    bits = {s.name: list(sensitivity.errors[s.name])[i] for s, i in zip(sites, pick, strict=True)}
    recipe = with_bits(sensitivity.recipe, sites, bits)
    costs = site_costs(sites, recipe, macs, steps)
    size = sum(cost.bytes_after for cost in costs)
    bops = None if macs is None else sum(cost.bops_after or 0 for cost in costs)
    if recipe != sensitivity.recipe:
        name = f"{recipe.name.partition('+')[0]}+{size / 1e6:.2f}MB"
        recipe = dataclasses.replace(recipe, name=name if bops is None else f"{name}-{bops / 1e9:.4g}GBOPs")
    return Allocation(recipe, bits, error, size, bops, bound)


def with_bits(recipe: Recipe, sites: tuple[Site, ...], bits: Mapping[str, Bits]) -> Recipe:
    """`recipe` with exceptions that give every site its bits; those it has already stay as they are.

    Most sites of a role share one exception, so that a recipe stays short enough for a link.

    Args:
        bits: of every site; where `fixed_bits` are not None, those.
    """
    by_role: dict[str, list[Site]] = {}
    for site in sites:
        by_role.setdefault(site.role, []).append(site)
    free = [role for role, own in by_role.items() if all(fixed_bits(recipe, site) is None for site in own)]
    for role in free:
        most = Counter(bits[site.name] for site in by_role[role]).most_common(1)[0][0]
        if most != bits_of(recipe, by_role[role][0]):
            recipe = recipe.override(role, *most)
    for site in sites:
        if bits[site.name] != bits_of(recipe, site):
            recipe = recipe.override(site.name, *bits[site.name])
    return recipe


def _in_words(kind: str, amount: float) -> str:
    return f"{amount / 1e6:.3f} MB" if kind == "bytes" else f"{amount / 1e9:.3f} GBOPs"
