"""HTDQ beside a uniform grid: what each makes of the temporal features, code by code and step by step.

Temporal features depend on the step alone, so all of this is exact and needs neither a video nor calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.export import Columns
from analysis.memory import remembered
from analysis.temporal import cosine_similarity, histogram, symlog
from qvd_core.calibration.temporal_features import TemporalFeatures, temporal_features
from qvd_core.formats import HTDQ
from qvd_core.methods.htdq import (
    CoefficientSearch,
    composite_k,
    equal_code_share,
    relative_error,
    search_coefficient,
    td_score,
)
from qvd_core.quantizers import logarithmic, uniform
from qvd_core.quantizers.logarithmic import log_grid, port_grid
from qvd_core.quantizers.uniform import affine_grid

if TYPE_CHECKING:
    from torch import Tensor

    from qvd_core.models.loader import VideoModel


@dataclass(frozen=True, eq=False)
class Quantized:
    """Temporal features on one grid.

    Attributes:
        levels: fp32 [L], the values its codes stand for, ascending.
        use: [L], how many of the features' values each code stands for.
        similarity: fp32 [T, T], cosines between steps.
        l2: squared error over that of zero; td_score and k: see `qvd_core.methods.htdq`.
        repeated: share of the codes that the next step repeats; NaN for a single step.
        zeros: share of the values that become zero.
    """

    levels: np.ndarray
    use: np.ndarray
    similarity: np.ndarray
    l2: float
    td_score: float
    k: float
    repeated: float
    zeros: float

    @property
    def used(self) -> int:
        """How many codes stand for at least one value."""
        return int((self.use > 0).sum())


@dataclass(frozen=True, eq=False)
class HTDQTable:
    """Temporal features of T steps on a uniform grid and on HiDi-TQ's.

    Attributes:
        bits: of both grids; method: what was chosen for HiDi-TQ; coefficient: its alpha.
        values: fp32 [T, C], in full precision; similarity and td_score: theirs.
        uniform: on the affine grid over their extremes; logarithmic: on HiDi-TQ's.
        stairs: fp32 [3, 801]: values across the range, and what each grid makes of them.
        search: K over the coefficient; None for the port's grid, which has none.
    """

    bits: int
    method: HTDQ
    coefficient: float
    values: np.ndarray
    similarity: np.ndarray
    td_score: float
    uniform: Quantized
    logarithmic: Quantized
    stairs: np.ndarray
    search: CoefficientSearch | None

    def columns(self) -> dict[str, np.ndarray]:
        """The search: one line per coefficient; of the port's grid, one line."""
        if self.search is None:
            made = self.logarithmic
            one = {"coefficient": 1.0, "k": made.k, "l2": made.l2, "td_score": made.td_score}
            return {name: np.array([value]) for name, value in one.items()}
        found = self.search
        return {
            "coefficient": found.coefficients.cpu().numpy(),
            "k": found.k.cpu().numpy(),
            "l2": found.l2.cpu().numpy(),
            "td_score": found.td_score.cpu().numpy(),
        }

    def stairs_columns(self) -> Columns:
        """One line per value across the range."""
        return Columns(dict(zip(("value", "uniform", "hidi_tq"), self.stairs, strict=True)))

    def use_columns(self) -> Columns:
        """One line per code of either grid."""
        grids = {"uniform": self.uniform, "hidi_tq": self.logarithmic}
        return Columns(
            {
                "grid": [name for name, grid in grids.items() for _ in grid.use],
                "level": np.concatenate([grid.levels for grid in grids.values()]),
                "values": np.concatenate([grid.use for grid in grids.values()]),
            }
        )


def htdq_table(model: VideoModel, steps: int, bits: int, method: HTDQ) -> HTDQTable:
    """Both grids of `bits` bits, 3 to 16, over the features of `steps` sampler steps.

    Raises:
        CalibrationError: the model has no temporal features that are known.
    """
    import torch

    features = features_of(model, steps).values.float()
    search = None
    coefficient = 1.0
    if not method.port:
        search = _searched(model, steps, bits, method.form, method.sign_inside, method.radius, method.centred)
        search = search.weighted(method.discriminability_weight)
        coefficient = search.coefficient if method.coefficient is None else method.coefficient
    absmax = features.abs().max()
    alpha = torch.tensor(coefficient, dtype=torch.float64)
    log = port_grid(absmax, bits) if method.port else log_grid(absmax, alpha, bits, method.form, method.sign_inside)
    log_codes = logarithmic.quantize(features, log).int()
    # Of a grid of 16 bits only the codes in use are listed: its levels would fill the page.
    most = log.levels
    all_log = torch.arange(-most, most + 1) if most < 2**12 else log_codes.unique()
    return HTDQTable(
        bits=bits,
        method=method,
        coefficient=coefficient,
        values=features.numpy(),
        similarity=cosine_similarity(features.numpy()),
        td_score=float(_score(features, features, method)),
        uniform=_on_uniform_grid(model, steps, bits, method.discriminability_weight, method.radius, method.centred),
        logarithmic=_quantized(
            features,
            log_codes,
            logarithmic.dequantize(log_codes, log),
            all_log,
            logarithmic.dequantize(all_log, log),
            method,
        ),
        stairs=_stairs(features, affine_grid(features.min(), features.max(), bits), log),
        search=search,
    )


def in_words(table: HTDQTable) -> str:
    """What both grids do, for people."""
    flat, log = table.uniform, table.logarithmic
    better = "HiDi-TQ" if log.k < flat.k else "the uniform grid"
    return (
        f"By K ({flat.k:.2g} uniform, {log.k:.2g} HiDi-TQ; lower is better), {better} keeps these features better."
        f" At {table.bits} bits a uniform grid rounds {flat.zeros:.1%} of the values to zero and uses {flat.used} of"
        f" its {len(flat.use)} codes; HiDi-TQ, with coefficient {table.coefficient:.3g}, {log.zeros:.1%} and"
        f" {log.used} of {len(log.use)}. Relative squared error: {flat.l2:.2g} uniform, {log.l2:.2g} HiDi-TQ. Codes"
        f" the next step repeats: {flat.repeated:.0%} uniform, {log.repeated:.0%} HiDi-TQ. TDScore,"
        f" {table.td_score:.3g} in full precision: {flat.td_score:.3g} and {log.td_score:.3g}."
    )


@remembered(256)
def features_of(model: VideoModel, steps: int) -> TemporalFeatures:
    """`temporal_features`; making a sampler for its timesteps takes longer than anything else here."""
    return temporal_features(model, steps)


@remembered(256)
def _searched(
    model: VideoModel, steps: int, bits: int, form: str, sign_inside: bool, radius: int, centred: bool
) -> CoefficientSearch:
    features = features_of(model, steps).values.float()
    return search_coefficient(features, bits, form=form, sign_inside=sign_inside, radius=radius, centred=centred)


@remembered(64)
def _on_uniform_grid(model: VideoModel, steps: int, bits: int, weight: float, radius: int, centred: bool) -> Quantized:
    import torch

    features = features_of(model, steps).values.float()
    grid = affine_grid(features.min(), features.max(), bits)
    codes = uniform.quantize(features, grid).int()
    all_codes = torch.arange(grid.code_min, grid.code_max + 1)
    values, levels = uniform.dequantize(codes, grid), uniform.dequantize(all_codes, grid)
    scored = HTDQ(discriminability_weight=weight, radius=radius, centred=centred)
    return _quantized(features, codes, values, all_codes, levels, scored)


def _quantized(
    features: Tensor, codes: Tensor, values: Tensor, all_codes: Tensor, levels: Tensor, method: HTDQ
) -> Quantized:
    found, counts = codes.unique(return_counts=True)
    use = np.zeros(len(all_codes), dtype=np.int64)
    use[np.searchsorted(all_codes.numpy(), found.numpy())] = counts.numpy()
    return Quantized(
        levels=levels.float().numpy(),
        use=use,
        similarity=cosine_similarity(values.float().numpy()),
        l2=float(relative_error(features, values)),
        td_score=float(_score(values, features, method)),
        k=float(composite_k(features, values, method.discriminability_weight, method.radius, method.centred)),
        repeated=float(equal_code_share(codes)),
        zeros=float((values == 0).double().mean()),
    )


def _stairs(features: Tensor, flat: uniform.Grid, log: logarithmic.LogGrid) -> np.ndarray:
    import torch

    counted = histogram(features.numpy())
    ends = symlog(counted.edges[[0, -1]], counted.unit)
    places = np.linspace(float(ends[0]), float(ends[1]), 801)
    x = torch.from_numpy(np.sign(places) * counted.unit * (10 ** np.abs(places) - 1)).float()
    return torch.stack([x, uniform.fake_quantize(x, flat), logarithmic.fake_quantize(x, log)]).numpy()


def _score(values: Tensor, features: Tensor, method: HTDQ) -> Tensor:
    centre = features.double().mean(0) if method.centred else None
    return td_score(values, method.radius, centre)
