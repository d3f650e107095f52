"""What each layer costs when it alone is quantized, and what a budget buys: the tables of both."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qvd_core.allocation import Allocation
from qvd_core.models.sites import Site
from qvd_core.sensitivity import Bits, Sensitivity


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """Every layer at one pair of bits.

    Attributes:
        bits: of weights and inputs; None stands for floating point.
        sites, roles: names, in the model's order; layers whose bits the recipe fixes are left out.
        estimated: fp64 [S], relative squared error of the layer's own output on the sampled tokens.
        measured: fp64 [S], that of the denoiser's prediction, from running it; NaN where it was not run.
    """

    bits: Bits
    sites: tuple[str, ...]
    roles: tuple[str, ...]
    estimated: np.ndarray
    measured: np.ndarray

    @property
    def agreement(self) -> float | None:
        """How well the estimate orders layers: its correlation with the measurement, of the logarithms, -1 to 1.

        None where fewer than three layers were measured, or none differs.
        """
        both = np.isfinite(self.measured) & (self.measured > 0) & (self.estimated > 0)
        logarithms = np.log(np.stack([self.estimated[both], self.measured[both]]))
        if both.sum() < 3 or (np.ptp(logarithms, axis=1) == 0).any():
            return None
        return float(np.corrcoef(logarithms)[0, 1])

    def columns(self) -> dict[str, np.ndarray]:
        return {
            "site": np.array(self.sites),
            "role": np.array(self.roles),
            "estimated": self.estimated,
            "measured": self.measured,
        }


@dataclass(frozen=True, eq=False)
class FrontTable:
    """What the least summed error is for every budget, and where some recipes lie.

    Attributes:
        cost: "bytes" or "bops".
        costs, errors: fp64 [P], of the recipes on the front, the cheapest first.
        chosen: of the recipe that is shown.
        uniform: by name, (cost, error) of recipes with the same bits everywhere.
    """

    cost: str
    costs: np.ndarray
    errors: np.ndarray
    chosen: Allocation
    uniform: dict[str, tuple[float, float]]

    def showing(self, chosen: Allocation) -> FrontTable:
        """The same front with another recipe on it."""
        return dataclasses.replace(self, chosen=chosen)

    @property
    def chosen_cost(self) -> float:
        return float(self.chosen.bytes if self.cost == "bytes" else self.chosen.bops or 0)

    def columns(self) -> dict[str, np.ndarray | list[str]]:
        """The front, the chosen recipe and the uniform ones, told apart by name."""
        names = ["front"] * len(self.costs) + [self.chosen.recipe.name, *self.uniform]
        others = list(self.uniform.values())
        return {
            "recipe": names,
            self.cost: np.array([*self.costs, self.chosen_cost, *(cost for cost, _ in others)]),
            "summed_error": np.array([*self.errors, self.chosen.error, *(error for _, error in others)]),
        }


def sensitivity_table(
    sites: Sequence[Site], bits: Bits, proxy: Sensitivity, measured: Sensitivity | None = None
) -> SensitivityTable:
    """Every layer that may have `bits`, see `SensitivityTable`."""
    own = [site for site in sites if bits in proxy.errors[site.name]]
    found = [np.nan if measured is None else measured.errors[site.name].get(bits, np.nan) for site in own]
    return SensitivityTable(
        bits,
        tuple(site.name for site in own),
        tuple(site.role for site in own),
        np.array([proxy.errors[site.name][bits] for site in own]),
        np.array(found),
    )


def front_table(
    front: Sequence[Allocation], chosen: Allocation, cost: str, uniform: dict[str, Allocation] | None = None
) -> FrontTable:
    """The front as `qvd_core.allocation.pareto_front` gave it, and where `chosen` lies."""

    def amount(allocation: Allocation) -> float:
        return float(allocation.bytes if cost == "bytes" else allocation.bops or 0)

    return FrontTable(
        cost,
        np.array([amount(allocation) for allocation in front]),
        np.array([allocation.error for allocation in front]),
        chosen,
        {name: (amount(own), own.error) for name, own in (uniform or {}).items()},
    )


def bits_by_role(sites: Sequence[Site], allocation: Allocation) -> list[tuple[str, str]]:
    """(role, "w8a8 (41), w6a8 (1)"): how many layers of a role got which bits, the largest role first."""
    counts: dict[str, Counter[Bits]] = {}
    parameters: Counter[str] = Counter()
    for site in sites:
        counts.setdefault(site.role, Counter())[allocation.bits[site.name]] += 1
        parameters[site.role] += site.parameters
    return [
        (role, ", ".join(f"{bits_in_words(bits)} ({count})" for bits, count in counts[role].most_common()))
        for role, _ in parameters.most_common()
    ]


def bits_in_words(bits: Bits) -> str:
    """(4, 8) as "w4a8", floating point as "float"."""
    if bits == (None, None):
        return "float"
    weights, inputs = ("float" if width is None else str(width) for width in bits)
    return f"w{weights}a{inputs}"
