"""What a recipe costs, computed exactly from shapes and bits: bytes of weights, and bit operations.

Bit operations follow the field's convention, BOPs = sum of MACs x weight bits x activation bits over
linear layers and convolutions of one denoiser call, floating point counting as 16 bits. Attention products
are not counted, on either side. One scale and zero point per layer input (5 bytes) are not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvd_core.recipe import Recipe

if TYPE_CHECKING:
    from qvd_core.models.sites import Site

FLOAT_BITS = 16
SCALE_BYTES = 4  # one fp32 scale per output channel


@dataclass(frozen=True)
class SiteCost:
    """One layer before and after.

    Attributes:
        site: the layer.
        weight_bits, activation_bits: after; None stands for floating point.
        bytes_before, bytes_after: weights, bias and scales; biases stay in 16 bits.
        macs: multiply-accumulates of one denoiser call, or None if the model has not been calibrated.
    """

    site: Site
    weight_bits: int | None
    activation_bits: int | None
    bytes_before: int
    bytes_after: int
    macs: int | None

    @property
    def bops_before(self) -> int | None:
        return None if self.macs is None else self.macs * FLOAT_BITS**2

    @property
    def bops_after(self) -> int | None:
        if self.macs is None:
            return None
        return self.macs * (self.weight_bits or FLOAT_BITS) * (self.activation_bits or FLOAT_BITS)


def site_costs(sites: tuple[Site, ...], recipe: Recipe, macs: Mapping[str, int] | None) -> list[SiteCost]:
    """The cost of every site under `recipe`.

    Args:
        sites: of a model.
        recipe: what is done at each.
        macs: per site name, from calibration statistics; None if the model has not been run.
    """
    costs = []
    for site in sites:
        weights, activations = recipe.formats(site.name, site.role)
        before = site.parameters * FLOAT_BITS // 8
        after = before
        if weights is not None:
            bias = site.out_channels if site.has_bias else 0
            zero_points = 0 if weights.symmetric else site.out_channels
            codes = -(-(site.parameters - bias) * weights.bits // 8)
            after = codes + bias * FLOAT_BITS // 8 + site.out_channels * SCALE_BYTES + zero_points
        costs.append(
            SiteCost(
                site=site,
                weight_bits=None if weights is None else weights.bits,
                activation_bits=None if activations is None else activations.bits,
                bytes_before=before,
                bytes_after=after,
                macs=None if macs is None else macs.get(site.name, 0),
            )
        )
    return costs
