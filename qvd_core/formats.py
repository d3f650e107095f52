"""The pieces recipes are made of: number formats, exceptions, and what each method lets one choose.

Frozen dataclasses of plain values, checked when they are made. What they mean is done elsewhere:
formats in `quantizers` and `calibration.ranges`, methods in the file of `methods` each one names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from qvd_core.errors import RecipeError

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(3, 17)


@dataclass(frozen=True)
class WeightFormat:
    """Uniform weights with one scale per output channel.

    Attributes:
        bits: 2 to 8.
        symmetric: codes -(2^(bits-1)-1) .. 2^(bits-1)-1 around zero; otherwise affine, with a zero point.
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        _check_bits("weight bits", self.bits, WEIGHT_BITS)
        check_flag("symmetric", self.symmetric)


ACTIVATION_RANGES = ("static_per_tensor", "static_per_frame", "static_per_step", "dynamic_per_token")
RANGE_SEARCHES = ("min_max", "mse", "mse_by_step", "percentile")


@dataclass(frozen=True)
class ActivationFormat:
    """Uniform layer inputs.

    Attributes:
        bits: 3 to 16.
        range: what shares a scale.
            "static_per_tensor": everything, fixed by calibration.
            "static_per_frame": each frame of the clip, where a layer sees frames one by one (the spatial
            half of a UNet); one scale elsewhere, and where channels are transformed or shortcuts split.
            "static_per_step": each step of the calibrated sampler.
            "dynamic_per_token": each row of a linear layer's input, found as it arrives. A convolution
            mixes positions, so there a token is one whole sample (a frame).
        symmetric: codes around zero; otherwise affine, with a zero point.
        search: how a static range is chosen, see `qvd_core.calibration.ranges`: "min_max", the extremes
            over all steps; "mse", the extremes shrunk to the range of least error over all steps;
            "mse_by_step", the mean over steps of the ranges of least error of each, as in QVD's public port;
            "percentile", which leaves out the outermost 0.1 % of values at either end.
    """

    bits: int
    range: Literal["static_per_tensor", "static_per_frame", "static_per_step", "dynamic_per_token"] = (
        "static_per_tensor"
    )
    symmetric: bool = False
    search: Literal["min_max", "mse", "mse_by_step", "percentile"] = "min_max"

    def __post_init__(self) -> None:
        _check_bits("activation bits", self.bits, ACTIVATION_BITS)
        check_flag("symmetric", self.symmetric)
        _check_choice("activation range", self.range, ACTIVATION_RANGES)
        _check_choice("range search", self.search, RANGE_SEARCHES)

    @property
    def needs_statistics(self) -> bool:
        """Whether only calibration knows the range."""
        return self.range != "dynamic_per_token"


@dataclass(frozen=True)
class HTDQ:
    """Temporal features on a logarithmic grid: QVD's High Discriminability Temporal Quantizer.

    See `qvd_core.methods.htdq` and `qvd_core.quantizers.logarithmic` for formulas and sources.

    Attributes:
        form: "H1", the relaxation coefficient multiplies the logarithm; "H2", it is added inside the
            logarithm; "H3", it scales the range.
        sign_inside: the sign takes one of the bits; otherwise it comes on top, as in the public port.
        port: the public port's quantizer: coefficient 1, midpoint rounding, sign outside, no search.
        coefficient: fixed relaxation coefficient; None to search for the one of least K.
        discriminability_weight: lambda in K = L2 + lambda * (relative loss of TDScore).
        radius: neighbouring steps on either side that TDScore compares.
        centred: TDScore after the features' mean over steps is subtracted.
    """

    method: Literal["htdq"] = field(default="htdq", init=False)
    form: Literal["H1", "H2", "H3"] = "H1"
    sign_inside: bool = True
    port: bool = False
    coefficient: float | None = None
    discriminability_weight: float = 1.0
    radius: int = 2
    centred: bool = False

    def __post_init__(self) -> None:
        _check_choice("form", self.form, ("H1", "H2", "H3"))
        for name in ("sign_inside", "port", "centred"):
            check_flag(name, getattr(self, name))
        if self.coefficient is not None:
            _check_number("coefficient", self.coefficient, 0, 1000)
            if self.coefficient == 0:
                raise RecipeError("coefficient = 0 leaves a single level; choose more than 0.")
        _check_number("discriminability_weight", self.discriminability_weight, 0, 1000)
        if not isinstance(self.radius, int) or isinstance(self.radius, bool) or not 1 <= self.radius <= 1000:
            raise RecipeError(f"radius = {self.radius!r} is out of range; choose a whole number from 1 to 1000.")


@dataclass(frozen=True)
class TemporalBlock:
    """The time path as one block with a range per step, in the manner of TFMQ-DM (arXiv 2311.16503).

    Time embedding and temporal features take one value per step, so their static ranges are those of
    that step alone. TFMQ-DM also optimizes the rounding of this block's weights; that part is left out.
    """

    method: Literal["temporal_block"] = field(default="temporal_block", init=False)


@dataclass(frozen=True)
class Tabulated:
    """The control: outputs of the time path's last layers in floating point, one row per sampler step.

    Exact, since they depend on the step alone, and bound to the sampler they were tabulated for.
    """

    method: Literal["tabulated"] = field(default="tabulated", init=False)


@dataclass(frozen=True)
class ShiftAndScale:
    """Channels moved to a common centre and wide ones shrunk, by an equivalent transformation.

    On temporal attention this is QVD's SCRI, on everything the manner of Outlier Suppression+
    (arXiv 2304.09145). See `qvd_core.methods.scri`.

    Attributes:
        shift: subtract each channel's mid-range.
        scale: divide channels wider than a searched threshold down to it; where an input stays in floating
            point there is no error to search by, and nothing is scaled.
        sites: roles or patterns of module paths, as in `Override`.
        steps: "all", ranges over all calibrated steps; "first", of the noisiest only, as the public port.
    """

    method: Literal["shift_and_scale"] = field(default="shift_and_scale", init=False)
    shift: bool = True
    scale: bool = True
    sites: tuple[str, ...] = ("temporal_attention",)
    steps: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        check_flag("shift", self.shift)
        check_flag("scale", self.scale)
        if not (self.shift or self.scale):
            raise RecipeError("Neither shift nor scale is on, so nothing would be done; leave `channels` out.")
        _check_sites(self.sites)
        _check_choice("steps", self.steps, ("all", "first"))


@dataclass(frozen=True)
class ChannelBalancing:
    """Range moved from inputs to weights, channel by channel: SmoothQuant (arXiv 2211.10438, equation 4).

    s_c = max|X_c|^strength / max|W_c|^(1 - strength), inputs divided and weights multiplied by it.
    ViDiT-Q's static balancing (arXiv 2406.02540) is the same with another strength.

    Attributes:
        strength: 0, all range stays in the inputs, to 1, all goes to the weights.
        sites: roles or patterns of module paths, as in `Override`.
    """

    method: Literal["channel_balancing"] = field(default="channel_balancing", init=False)
    strength: float = 0.5
    sites: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        _check_number("strength", self.strength, 0, 1)
        _check_sites(self.sites)


@dataclass(frozen=True)
class Override:
    """Other formats for some sites.

    Attributes:
        sites: a role ("temporal_attention"), a module path, or a pattern of one ("up_blocks.2.*").
        weight_bits: 2 to 8, or None to leave the weights in floating point.
        activation_bits: 3 to 16, or None to leave the inputs in floating point.
        range, search: of the inputs, as in `ActivationFormat`; None for those of the recipe.
    """

    sites: str
    weight_bits: int | None
    activation_bits: int | None
    range: Literal["static_per_tensor", "static_per_frame", "static_per_step", "dynamic_per_token"] | None = None
    search: Literal["min_max", "mse", "mse_by_step", "percentile"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.sites, str) or not self.sites:
            raise RecipeError(f"An override names a role or a module path, not {self.sites!r}.")
        if self.weight_bits is not None:
            _check_bits("weight bits", self.weight_bits, WEIGHT_BITS)
        if self.activation_bits is not None:
            _check_bits("activation bits", self.activation_bits, ACTIVATION_BITS)
        if self.range is not None:
            _check_choice("activation range", self.range, ACTIVATION_RANGES)
        if self.search is not None:
            _check_choice("range search", self.search, RANGE_SEARCHES)

    def matches(self, site_name: str, role: str) -> bool:
        return matches(self.sites, site_name, role)


def matches(pattern: str, site_name: str, role: str) -> bool:
    """Whether `pattern`, a role or a pattern of module paths ("up_blocks.2.*"), means this site."""
    return pattern in (role, site_name) or fnmatchcase(site_name, pattern)


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"Unknown {what} {value!r}; choose from {', '.join(choices)}.")


def _check_number(what: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise RecipeError(f"{what} = {value!r} is out of range; choose {low} to {high}.")


def _check_sites(sites: object) -> None:
    if not isinstance(sites, tuple) or not sites or not all(isinstance(s, str) and s for s in sites):
        raise RecipeError(f"sites = {sites!r} names no roles or module paths.")


def _check_bits(what: str, bits: object, allowed: range) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in allowed:
        raise RecipeError(f"{what} = {bits!r} is out of range; choose {allowed[0]} to {allowed[-1]}.")


def check_flag(what: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RecipeError(f"{what} = {value!r} is neither true nor false.")
