"""HTDQ, QVD's quantizer for temporal features (arXiv 2407.11585, section 4.1): TDScore, HiDi-TQ and its search.

    TDScore   how well the features of neighbouring sampler steps can still be told apart
    HiDi-TQ   a logarithmic quantizer with a relaxation coefficient alpha (qvd_core/quantizers/logarithmic.py)
    K         TDScore and L2 error in one number; alpha is the one on a grid with the smallest K

Published are these names and what each is for: that TDScore rests on the similarity of a feature to several
adjacent ones, that K combines it with an L2 loss, that alpha is found by grid search. Every formula below is
our reconstruction, chosen so that all quantities are free of units, K is zero for an exact quantizer and
spread beyond that of full precision is never rewarded. Features are [T, C], one row for each of T sampler
steps; all metrics are computed in fp64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qvd_core.errors import CalibrationError, RecipeError
from qvd_core.formats import ACTIVATION_BITS
from qvd_core.quantizers.logarithmic import FORMS, LogGrid, level_count, log_grid

GRID_POINTS = 100
LOW_PERCENTILE = 0.01

# Scores are means of 1 - cosine; what is below this is rounding.
SMALLEST_SCORE = 1e-12

# Numbers quantized at once: what fits a processor's cache, twice as fast as all at once.
BLOCK = 2**18


def td_score(features: Tensor, radius: int = 2, centre: Tensor | None = None) -> Tensor:
    """Temporal discriminability score of features [..., T, C], fp64 [...]: 0 (all alike) to 2, higher is better.

    The mean over steps of 1 - S, where S is the mean cosine similarity of a step to its neighbours: up to
    `radius` steps before and after, fewer at both ends. A zero feature discriminates nothing: its cosines are 1.
    A single step has no neighbours: the score is 0. Errors that differ between steps count as differences, so
    coarse rounding often raises the score: compare it with that of full precision. The paper publishes neither
    the similarity, the number of neighbours nor the direction; these are the simplest that fit its words.

    Args:
        radius: in sampler steps, 1 or more.
        centre: [C], subtracted first; the mean of the full-precision features over steps, without which what
            all steps share may drown their differences.

    Raises:
        CalibrationError: features of another shape, or not finite.
        RecipeError: `radius` is not a positive whole number.
    """
    _check_features(features)
    _check_radius(radius)
    return _td_score(features.double(), radius, centre)


def _td_score(features: Tensor, radius: int, centre: Tensor | None) -> Tensor:
    x = features if centre is None else features - centre
    steps = x.shape[-2]
    squares = x.square().sum(-1)
    similarity, neighbours = torch.zeros_like(squares), torch.zeros_like(squares)
    for distance in range(1, min(radius, steps - 1) + 1):
        products = (x[..., distance:, :] * x[..., :-distance, :]).sum(-1)
        # The root of the product, not the product of roots: it makes the cosine of equal features exactly 1.
        lengths = (squares[..., distance:] * squares[..., :-distance]).sqrt()
        cosine = torch.where(lengths == 0, 1.0, products / lengths)
        for side in (slice(distance, None), slice(None, -distance)):
            similarity[..., side] += cosine
            neighbours[..., side] += 1
    if steps == 1:
        return similarity.squeeze(-1)
    return (1 - similarity / neighbours).mean(-1)


def equal_code_share(codes: Tensor) -> Tensor:
    """Share of the entries of codes [..., T, C] that the next step repeats, fp64 [...], 0 to 1.

    A diagnostic beside TDScore: outliers dominate a cosine, so it can miss that small entries have collapsed.
    A single step has no next: NaN.
    """
    return (codes[..., 1:, :] == codes[..., :-1, :]).double().mean((-2, -1))


def relative_error(features: Tensor, quantized: Tensor) -> Tensor:
    """Squared L2 error of quantized [..., T, C] over that of zero, sum |f' - f|^2 / sum |f|^2, fp64 [...].

    Against features that are all zero, an exact copy has error 0 and anything else infinity.

    Raises:
        CalibrationError: the two do not fit each other.
    """
    if features.ndim != 2 or quantized.shape[-2:] != features.shape:
        raise CalibrationError(
            f"Features {list(features.shape)} and quantized ones {list(quantized.shape)} do not fit;"
            " pass [steps, channels] and [..., steps, channels]."
        )
    return _relative_error(features.double(), quantized.double())


def _relative_error(features: Tensor, quantized: Tensor) -> Tensor:
    error = (quantized - features).square().sum((-2, -1))
    return torch.where(error == 0, 0.0, error / features.square().sum())


def composite_k(
    features: Tensor, quantized: Tensor, weight: float = 1.0, radius: int = 2, centred: bool = False
) -> Tensor:
    """K of quantized [..., T, C] against full-precision features [T, C], fp64 [...]: 0 is exact, lower is better.

        K = relative_error + weight max(0, 1 - TDScore(quantized) / TDScore(features))

    The hinge stops K from rewarding more spread than full precision has, which would be distortion. Where
    features do not differ between steps (all zero, or a single step) nothing can be lost, and it is 0. The
    paper publishes neither how the two are combined nor any weight.

    Args:
        weight: of the loss in TDScore, 0 or more; 0 leaves the L2 error alone.
        radius: of TDScore.
        centred: subtract the mean of `features` over steps from both before TDScore.

    Raises:
        CalibrationError: features of another shape, or not finite.
        RecipeError: a `weight` or `radius` out of range.
    """
    _check_weight(weight)
    centre = _centre(features, centred)
    reference, score = td_score(features, radius, centre), td_score(quantized, radius, centre)
    return combined_k(relative_error(features, quantized), score, reference, weight)


def coefficient_grid(features: Tensor, levels: int, form: str = "H1") -> Tensor:
    """The relaxation coefficients to try for `levels` magnitudes, fp64 [G], ascending, 1 always among them.

    100 points, evenly spaced in the logarithm. With p the lowest percentile of the magnitudes other than zero,
    A the largest and octaves = log2(A / p), but at least 1, they span

        H1   0.5 to 2 alpha_max, alpha_max = (levels - 1) / octaves being the finest grid that reaches p; but at
             least 0.5 to 2, as few levels over many octaves, 4 bits and below, would leave the span empty.
        H2   p / (2 A), almost purely logarithmic, to 16, within 6 percent of uniform.
        H3   0.5 to 2: its levels are powers of two, so beyond a factor of two only the ends differ.

    The paper says that a grid is searched, not which.
    """
    magnitudes = features.double().abs()
    magnitudes = magnitudes[magnitudes > 0]
    octaves = 1.0
    if len(magnitudes):
        octaves = max(octaves, float(torch.log2(magnitudes.max() / magnitudes.quantile(LOW_PERCENTILE))))
    finest = (levels - 1) / octaves
    low, high = {"H1": (0.5, 2 * max(1.0, finest)), "H2": (2**-octaves / 2, 16.0), "H3": (0.5, 2.0)}[form]
    points = torch.logspace(math.log2(low), math.log2(high), GRID_POINTS, base=2, dtype=torch.float64)
    return torch.cat([points, points.new_ones(1)]).unique().to(features.device)


@dataclass(frozen=True, eq=False)
class CoefficientSearch:
    """What each relaxation coefficient did to the features, and which one did best.

    Attributes:
        coefficients: fp64 [G], positive.
        k: fp64 [G], composite metric, lower is better.
        l2: fp64 [G], `relative_error`.
        td_score: fp64 [G], of the quantized features; centred if the search was.
        reference_td_score: that of the full-precision features.
    """

    coefficients: Tensor
    k: Tensor
    l2: Tensor
    td_score: Tensor
    reference_td_score: float

    def weighted(self, weight: float) -> CoefficientSearch:
        """The same search with another weight of the loss in TDScore."""
        _check_weight(weight)
        reference = torch.tensor(self.reference_td_score, dtype=torch.float64)
        return replace(self, k=combined_k(self.l2, self.td_score, reference, weight))

    @property
    def best(self) -> int:
        """The index of the smallest K; of several, that of the coefficient nearest to 1, the plain form."""
        distance = self.coefficients.log2().abs()
        return int(torch.where(self.k == self.k.min(), distance, math.inf).argmin())

    @property
    def coefficient(self) -> float:
        """The relaxation coefficient to use."""
        return float(self.coefficients[self.best])


def search_coefficient(
    features: Tensor,
    bits: int,
    *,
    form: str = "H1",
    sign_inside: bool = True,
    radius: int = 2,
    weight: float = 1.0,
    centred: bool = False,
    coefficients: Tensor | None = None,
) -> CoefficientSearch:
    """K of every coefficient on a grid, for features [T, C] quantized over their own range.

    Features that are all zero are exact with any coefficient; the best is then 1.

    Args:
        features: full precision; all T steps share one grid, whose A is their largest magnitude.
        bits: 3 to 16; `sign_inside` says whether they include the sign.
        form: a key of `FORMS`.
        radius, weight, centred: see `composite_k`.
        coefficients: [G], positive, in place of `coefficient_grid`.

    Raises:
        CalibrationError: features of another shape, or not finite.
        RecipeError: any other argument is unknown or out of range.
    """
    _check_features(features)
    if features.ndim != 2:
        raise CalibrationError(f"Temporal features are [steps, channels], not {list(features.shape)}.")
    if not isinstance(bits, int) or bits not in ACTIVATION_BITS:
        raise RecipeError(f"bits = {bits!r} is out of range; choose {ACTIVATION_BITS[0]} to {ACTIVATION_BITS[-1]}.")
    if form not in FORMS:
        raise RecipeError(f"Unknown form {form!r} of the logarithmic quantizer; choose from {', '.join(FORMS)}.")
    _check_radius(radius)
    _check_weight(weight)
    features = features.float()
    if coefficients is None:
        coefficients = coefficient_grid(features, level_count(bits, sign_inside), form)
    coefficients = coefficients.to(features.device, torch.float64)
    if coefficients.ndim != 1 or not len(coefficients) or not (coefficients.isfinite() & (coefficients > 0)).all():
        raise RecipeError(f"Relaxation coefficients are a list of positive numbers, not {coefficients.tolist()}.")
    absmax, centre = features.abs().max(), _centre(features, centred)
    ascending, order = features.abs().flatten().sort()
    back = order.argsort()
    exact, signs = features.double(), features.sign()
    errors, scores = [], []
    largest = max(features.numel(), level_count(bits, sign_inside))
    for some in coefficients.split(max(1, BLOCK // largest)):
        magnitudes = _rounded(ascending, log_grid(absmax, some, bits, form, sign_inside))
        quantized = (magnitudes.index_select(1, back).reshape(-1, *features.shape) * signs).double()
        errors.append(_relative_error(exact, quantized))
        scores.append(_td_score(quantized, radius, centre))
    l2, score = torch.cat(errors), torch.cat(scores)
    reference = td_score(features, radius, centre)
    return CoefficientSearch(coefficients, combined_k(l2, score, reference, weight), l2, score, float(reference))


def _rounded(ascending: Tensor, grid: LogGrid) -> Tensor:
    """What [G] grids make of N ascending magnitudes, fp32 [G, N]: what `fake_quantize` would, and faster.

    The fewer are looked up among the others: thresholds among the magnitudes, or magnitudes among the thresholds.
    """
    if grid.levels > len(ascending):
        wanted = ascending.expand(len(grid.thresholds), -1).contiguous()
        return grid.magnitudes.gather(1, torch.searchsorted(grid.thresholds, wanted, right=True))
    first = torch.searchsorted(ascending, grid.thresholds)
    ends = torch.full_like(first[:, :1], len(ascending))
    counts = torch.cat([torch.zeros_like(ends), first, ends], 1).diff()
    return grid.magnitudes.flatten().repeat_interleave(counts.flatten()).reshape(len(first), -1)


def _centre(features: Tensor, centred: bool) -> Tensor | None:
    return features.double().mean(-2) if centred else None


def combined_k(error: Tensor, score: Tensor, reference: Tensor, weight: float) -> Tensor:
    """K of its parts, see `composite_k`: relative errors and TDScores [...], and that of full precision."""
    lost = (1 - score / reference).clamp(min=0)
    return error + weight * torch.where(reference > SMALLEST_SCORE, lost, 0.0)


def _check_features(features: Tensor) -> None:
    if features.ndim < 2 or not features.numel():
        raise CalibrationError(f"Temporal features are [..., steps, channels], not {list(features.shape)}.")
    if not features.isfinite().all():
        raise CalibrationError("The temporal features hold NaN or infinite values; check the model's weights.")


def _check_radius(radius: object) -> None:
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
        raise RecipeError(f"radius = {radius!r} steps is out of range; choose a whole number from 1.")


def _check_weight(weight: object) -> None:
    if not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise RecipeError(f"weight = {weight!r} is out of range; choose a finite number from 0.")
