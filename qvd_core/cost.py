"""What a recipe costs, computed exactly from shapes and bits: bytes of weights, and bit operations.

Bit operations follow the field's convention, BOPs = sum of MACs x weight bits x activation bits over
linear layers and convolutions of one denoiser call, floating point counting as 16 bits. Attention products
are not counted, on either side. Scales and zero points of layer inputs are not either: 5 bytes per tensor,
frame or step of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvd_core.formats import ShiftAndScale, Tabulated, WeightFormat, matches
from qvd_core.recipe import TIME_PATH, Recipe

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
        macs: multiply-accumulates of one denoiser call, 0 where a table replaces it; None if the model has
            not been calibrated.
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


def site_costs(
    sites: tuple[Site, ...], recipe: Recipe, macs: Mapping[str, int] | None, steps: int = 25
) -> list[SiteCost]:
    """The cost of every site under `recipe`.

    Args:
        sites: of a model.
        recipe: what is done at each.
        macs: per site name, from calibration statistics; None if the model has not been run.
        steps: length of the sampler, for a time path that is tabulated.
    """
    costs = []
    for site in sites:
        weights, activations = recipe.formats(site.name, site.role)
        tabulated = isinstance(recipe.temporal, Tabulated) and site.role in TIME_PATH
        costs.append(
            SiteCost(
                site=site,
                weight_bits=None if weights is None else weights.bits,
                activation_bits=None if activations is None else activations.bits,
                bytes_before=site.parameters * FLOAT_BITS // 8,
                bytes_after=_table_bytes(site, steps) if tabulated else _layer_bytes(site, recipe, weights),
                macs=None if macs is None else 0 if tabulated else macs.get(site.name, 0),
            )
        )
    return costs


def _table_bytes(site: Site, steps: int) -> int:
    """One row of outputs per step for a layer that is looked up; nothing for those only it depends on."""
    return steps * site.out_channels * FLOAT_BITS // 8 if site.role == "temporal_features" else 0


def _layer_bytes(site: Site, recipe: Recipe, weights: WeightFormat | None) -> int:
    """Codes, scales and zero points of the weights, and the bias, which a shifted input adds if there is none.

    Transformations of channels are taken as folded into the norm before; where they cannot be, the two
    numbers they keep for each input channel are not counted.
    """
    bias = site.out_channels if site.has_bias else 0
    count = site.parameters - bias
    channels = recipe.channels
    if isinstance(channels, ShiftAndScale) and channels.shift:
        bias = site.out_channels if any(matches(p, site.name, site.role) for p in channels.sites) else bias
    if weights is None:
        return (count + bias) * FLOAT_BITS // 8
    parts = 2 if recipe.split_shortcuts and site.role == "shortcut_convolution" else 1
    zero_points = 0 if weights.symmetric else site.out_channels
    return (
        -(-count * weights.bits // 8) + bias * FLOAT_BITS // 8 + parts * (site.out_channels * SCALE_BYTES + zero_points)
    )
