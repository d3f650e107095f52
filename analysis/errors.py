"""Where a quantized model loses accuracy: the tables of what `qvd_core` has measured by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.site_map import SiteMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ErrorGrowth:
    """How far the latents are from those of full precision, for each part of a recipe switched on alone.

    Attributes:
        recipe: its name.
        parts: what was switched on; the last is the whole recipe.
        errors: fp32 [parts, steps], |z' - z| / |z| after each step.
    """

    recipe: str
    parts: tuple[str, ...]
    errors: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """One line per part and step; steps count from 1."""
        part, step = (index.ravel() for index in np.indices(self.errors.shape))
        return {"part": np.array(self.parts)[part], "step": step + 1, "latent_error": self.errors.ravel()}

    def in_words(self) -> str:
        """Which part alone comes closest to the error of the whole, for people."""
        final = dict(zip(self.parts, self.errors[:, -1], strict=True))
        whole = final.pop(self.parts[-1])
        if not final or whole == 0:
            return f"After the last step the latents of {self.recipe} are off by {whole:.1%}."
        worst = max(final, key=lambda part: final[part])
        each = ", ".join(f"{part} {error:.1%}" for part, error in final.items())
        return (
            f"After the last step the latents of {self.recipe} are off by {whole:.1%} of their size. Each part alone:"
            f" {each}. Most of it comes from the {worst}."
        )


def error_growth_table(recipe: str, found: Mapping[str, Sequence[float]]) -> ErrorGrowth:
    """What `qvd_core.causes.error_growth` returned, as a table."""
    return ErrorGrowth(recipe, tuple(found), np.array(list(found.values()), dtype=np.float32))


def output_error_map(errors: Mapping[str, Tensor]) -> SiteMap:
    """What `qvd_core.site_error.site_errors` returned, |y' - y|^2 / |y|^2 by layer and step, as a map."""
    values = np.stack([error.float().cpu().numpy() for error in errors.values()])
    return SiteMap("output_error", tuple(errors), values)


def worst_sites(table: SiteMap, count: int = 20) -> tuple[list[str], np.ndarray]:
    """The layers of largest mean value over all steps, the largest first, and those means."""
    means = np.nanmean(np.where(np.isfinite(table.values), table.values, np.nan), axis=1)
    order = np.argsort(-means, kind="stable")[:count]
    return [table.sites[i] for i in order], means[order]
