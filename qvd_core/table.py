"""From results clip by clip to one table: a row per recipe, every number with its interval.

Measures of single clips are averaged; distances between sets compare a recipe's clips with the reference's.
Intervals are 95 % bootstrap intervals over clips. Distances between sets are biased upwards by small sets:
they compare rows of one table, never with published figures.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qvd_core.calibration.statistics import Statistics
from qvd_core.cost import site_costs
from qvd_core.evaluation import NOISE_FLOOR, REFERENCE, ClipResult
from qvd_core.metrics.frechet import bootstrap_interval, frechet_distance, kernel_distance
from qvd_core.metrics.i3d import FVD, KVD
from qvd_core.metrics.inception import FRAME_FID, FRAME_KID
from qvd_core.metrics.lpips import LPIPS
from qvd_core.metrics.motion import FRAME_CONSISTENCY, MOTION_SMOOTHNESS, TEMPORAL_FLICKERING
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe
from qvd_core.storage import replacing

SET_RESAMPLES = 200  # a distance between sets costs much more than a mean
FEW_CLIPS = 400  # below the number of I3D's features, a Frechet distance is mostly bias

COLUMNS: dict[str, str] = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "latent_error": "latent error",
    "lpips": LPIPS["alex"],
    "fvd": FVD,
    "kvd": KVD,
    "frame_fid": FRAME_FID,
    "frame_kid": FRAME_KID,
    "caption": "caption attributes read back",
    "motion": "motion read back",
    "motion_smoothness": MOTION_SMOOTHNESS,
    "frame_consistency": FRAME_CONSISTENCY,
    "temporal_flickering": TEMPORAL_FLICKERING,
}
"""Headings of all measures, in the order of the table."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over `count` clips; `low` and `high` are None for fewer than three."""

    value: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Row:
    """One recipe.

    Attributes:
        recipe: its name.
        clips: how many; identical: of those, equal to their reference (left out of the mean PSNR,
            which is infinite for them).
        estimates: by key of `COLUMNS`; what could not be measured is absent.
        psnr_by_clip: dB by number of the clip, so that rows can be compared clip by clip; without identical clips.
        latent_error_by_step: means over clips.
        caption: share of clips whose attribute is read back, by attribute.
        seconds_per_clip, search_seconds: medians, measured.
        costs: by heading, see `with_costs`.
    """

    recipe: str
    clips: int
    identical: int
    estimates: dict[str, Estimate]
    psnr_by_clip: dict[int, float]
    latent_error_by_step: tuple[float, ...]
    caption: dict[str, float]
    seconds_per_clip: float
    search_seconds: float
    costs: dict[str, float] = field(default_factory=dict)


def tabulate(results: Sequence[ClipResult]) -> list[Row]:
    """One row per recipe, in the order of their first results."""
    by_recipe: dict[str, list[ClipResult]] = {}
    for result in results:
        by_recipe.setdefault(result.recipe, []).append(result)
    reference = {result.number: result for result in by_recipe.get(REFERENCE, [])}
    return [_row(name, own, reference) for name, own in by_recipe.items()]


def _row(name: str, own: list[ClipResult], reference: Mapping[int, ClipResult]) -> Row:
    estimates: dict[str, Estimate] = {}
    for key in COLUMNS:
        values = [r.measures[key] for r in own if key in r.measures and math.isfinite(r.measures[key])]
        if values:
            estimates[key] = _estimate(np.mean, np.array(values))
    readings = [r.caption for r in own if r.caption is not None]
    caption = {}
    if readings:
        caption = {attribute: float(np.mean([r[attribute] for r in readings])) for attribute in readings[0]}
        estimates["caption"] = _estimate(np.mean, np.array([np.mean(list(r.values())) for r in readings]))
        estimates["motion"] = _estimate(np.mean, np.array([float(r["motion"]) for r in readings]))
    if name != REFERENCE:
        estimates |= _set_distances([(reference[r.number], r) for r in own if r.number in reference])
    curves = [r.latent_error_by_step for r in own if r.latent_error_by_step]
    return Row(
        recipe=name,
        clips=len(own),
        identical=sum(r.measures.get("psnr_db") == math.inf for r in own),
        estimates=estimates,
        psnr_by_clip={
            r.number: r.measures["psnr_db"] for r in own if math.isfinite(r.measures.get("psnr_db", math.inf))
        },
        latent_error_by_step=tuple(np.mean(curves, 0).tolist()) if curves else (),
        caption=caption,
        seconds_per_clip=float(np.median([r.seconds for r in own])),
        search_seconds=float(np.median([r.search_seconds for r in own])),
    )


def _set_distances(pairs: list[tuple[ClipResult, ClipResult]]) -> dict[str, Estimate]:
    """Distances between the references and the clips of the same prompts."""

    def frame_fid(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))

    def frame_kid(a: np.ndarray, b: np.ndarray) -> float:
        # Frames of one clip resemble each other, so each moment is compared by itself.
        return float(np.mean([kernel_distance(a[:, f], b[:, f], paired=True) for f in range(a.shape[1])]))

    def kvd(a: np.ndarray, b: np.ndarray) -> float:
        return kernel_distance(a, b, paired=True)

    found = {}
    for feature, distances in (
        ("i3d", {"fvd": frechet_distance, "kvd": kvd}),
        ("inception", {"frame_fid": frame_fid, "frame_kid": frame_kid}),
    ):
        both = [(a.features[feature], b.features[feature]) for a, b in pairs if feature in b.features]
        if len(both) > 1:
            sets = [np.stack(side) for side in zip(*both, strict=True)]
            for key, distance in distances.items():
                found[key] = _estimate(distance, *sets, resamples=SET_RESAMPLES)
    return found


def _estimate(statistic: Callable[..., Any], *sets: np.ndarray, resamples: int = 1000) -> Estimate:
    count = len(sets[0])
    low, high = bootstrap_interval(statistic, *sets, resamples=resamples) if count > 2 else (None, None)
    return Estimate(float(statistic(*sets)), low, high, count)


def with_costs(
    rows: Sequence[Row], model: VideoModel, recipes: Sequence[Recipe], statistics: Statistics | None
) -> list[Row]:
    """The rows with what each costs: weights and bit operations computed from shapes, seconds measured."""
    by_name = {recipe.name: recipe for recipe in recipes}
    macs = None if statistics is None else statistics.macs
    full = []
    for row in rows:
        recipe = by_name.get(row.recipe, Recipe(row.recipe, None, None))
        sites = site_costs(model.sites, recipe, macs, model.spec.steps)
        costs = {"weights, MB": sum(site.bytes_after for site in sites) / 1e6}
        if macs is not None:
            costs["GBOPs per call"] = sum(site.bops_after or 0 for site in sites) / 1e9
        if statistics is not None:
            costs["calibration, s"] = statistics.run.seconds if recipe.needs_statistics else 0.0
        full.append(replace(row, costs=costs | {"search, s": row.search_seconds}))
    return full


def write_table(rows: Sequence[Row], report: Any, path: Path) -> None:
    """Write `report` as JSON to `path`, and the rows as .md and .csv beside it.

    Raises:
        StorageError: they cannot be written.
    """
    for file, text in (
        (path, json.dumps(report, indent=2) + "\n"),
        (path.with_suffix(".md"), as_markdown(rows)),
        (path.with_suffix(".csv"), as_csv(rows)),
    ):
        with replacing(file) as scratch:
            scratch.write_text(text)


def as_markdown(rows: Sequence[Row]) -> str:
    """A table for a README: value and half the width of its interval, and what the numbers rest on."""
    keys = [key for key in COLUMNS if any(key in row.estimates for row in rows)]
    cost_heads = list(dict.fromkeys(head for row in rows for head in row.costs))
    heads = ["recipe", "clips", *(COLUMNS[key] for key in keys), *cost_heads]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [row.recipe, str(row.clips), *(_cell(row.estimates.get(key)) for key in keys)]
        cells += [f"{row.costs[head]:.3g}" if head in row.costs else "–" for head in cost_heads]
        lines.append("| " + " | ".join(cells) + " |")
    fewest = min(row.clips for row in rows)
    notes = "Simulated arithmetic. ± is half of a 95 % bootstrap interval over clips."
    if "fvd" in keys and fewest < FEW_CLIPS:
        notes += (
            f" Frechet distances of {fewest} clips are mostly bias of the small sample: they order the rows of"
            f" this table, and the row “{NOISE_FLOOR}” is their floor; never compare them with published figures."
        )
    return "\n".join(lines) + "\n\n" + notes + "\n"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ± {(estimate.high - estimate.low) / 2:.2g}"


def as_csv(rows: Sequence[Row]) -> str:
    """All estimates with their intervals, one line per recipe; empty cells for what was not measured."""
    cost_heads = list(dict.fromkeys(head for row in rows for head in row.costs))
    heads = ["recipe", "clips", "identical"]
    heads += [f"{key}{end}" for key in COLUMNS for end in ("", "_low", "_high")] + cost_heads
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(heads)
    for row in rows:
        cells: list[Any] = [row.recipe, row.clips, row.identical]
        for key in COLUMNS:
            estimate = row.estimates.get(key)
            cells += ["", "", ""] if estimate is None else [estimate.value, estimate.low, estimate.high]
        writer.writerow(cells + [row.costs.get(head, "") for head in cost_heads])
    return text.getvalue()
