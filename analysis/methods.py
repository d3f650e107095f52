"""Which layers the methods of a recipe touch, and in what a recipe differs from the plain grid that figures draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvd_core.formats import HTDQ, ActivationFormat, ChannelBalancing, ShiftAndScale, Tabulated
from qvd_core.recipe import TIME_PATH, Recipe

if TYPE_CHECKING:
    from qvd_core.models.loader import VideoModel
    from qvd_core.models.sites import Site

SCRI_SITES = ("temporal_attention",)
"""Where shifting and scaling channels is QVD's SCRI; elsewhere it is the manner of Outlier Suppression+."""


def temporal_sites(sites: Sequence[Site], recipe: Recipe) -> list[Site]:
    """The layers of the time path that `recipe.temporal` treats otherwise than all others; often none."""
    if recipe.temporal is None or not any(site.role == "temporal_features" for site in sites):
        return []
    if isinstance(recipe.temporal, Tabulated):
        return [site for site in sites if site.role in TIME_PATH]
    if isinstance(recipe.temporal, HTDQ):
        return [s for s in sites if s.role == "temporal_features" and recipe.formats(s.name, s.role)[1] is not None]
    return [site for site in sites if site.role in TIME_PATH and _has_grid_per_step(site, recipe)]


def transformed_sites(model: VideoModel, recipe: Recipe) -> set[str]:
    """The layers whose input `recipe.channels` transforms."""
    from qvd_core.methods.at_sites import transformed_inputs

    return {name for shared in transformed_inputs(model, recipe) for name in shared.consumers}


def bound_to_steps(sites: Sequence[Site], recipe: Recipe) -> bool:
    """Whether some layer knows the steps of the calibrated sampler only."""
    if isinstance(recipe.temporal, Tabulated):
        return any(site.role == "temporal_features" for site in sites)
    return any(_has_grid_per_step(site, recipe) for site in sites)


def unlike_the_figure(model: VideoModel, recipe: Recipe, site: Site, drawn: ActivationFormat) -> str:
    """In what `recipe` differs at `site` from one uniform grid over the extremes of all steps, for people.

    Args:
        drawn: bits and symmetry of that grid.

    Returns:
        A sentence, or "" if the recipe does just that.
    """
    form = recipe.formats(site.name, site.role)[1]
    if site.role in TIME_PATH and isinstance(recipe.temporal, Tabulated):
        return (
            "The recipe looks up in a table what the time path gives, in floating point (the control); the"
            f" {drawn.bits}-bit grid only shows what if."
        )
    if form is None:
        return f"The recipe leaves this input in floating point; the {drawn.bits}-bit grid only shows what if."
    if site.role == "temporal_features" and isinstance(recipe.temporal, HTDQ):
        return "The recipe rounds these values on a logarithmic grid (HTDQ); drawn is a uniform one."
    differences = []
    transformed = site.name in transformed_sites(model, recipe)
    if transformed:
        differences.append(f"channels are first {_transformation(recipe)}")
    differences += _other_grid(model, recipe, site, form, transformed)
    if form.symmetric != drawn.symmetric:
        differences.append("the grid is symmetric" if form.symmetric else "the grid is affine")
    if not differences:
        return ""
    *firsts, last = differences
    return f"The recipe differs from what is drawn: {', '.join(firsts)}{' and ' if firsts else ''}{last}."


def _has_grid_per_step(site: Site, recipe: Recipe) -> bool:
    form = recipe.formats(site.name, site.role)[1]
    if form is None or (site.role == "temporal_features" and isinstance(recipe.temporal, HTDQ)):
        return False
    return form.range == "static_per_step"


def _transformation(recipe: Recipe) -> str:
    if isinstance(recipe.channels, ChannelBalancing):
        return "balanced against the weights"
    assert isinstance(recipe.channels, ShiftAndScale)
    does = [name for name, on in (("shifted", recipe.channels.shift), ("scaled", recipe.channels.scale)) if on]
    source = "SCRI" if recipe.channels.sites == SCRI_SITES else "Outlier Suppression+"
    return f"{' and '.join(does)} ({source})"


def _other_grid(model: VideoModel, recipe: Recipe, site: Site, form: ActivationFormat, transformed: bool) -> list[str]:
    from qvd_core.models.sites import shortcut_split

    found = []
    if form.range == "dynamic_per_token":
        found.append("every token gets a grid of its own as it arrives")
    if form.range == "static_per_step":
        found.append("every step has a grid of its own")
    if form.range == "static_per_frame" and site.sees_frames and not transformed:
        found.append("every frame has a grid of its own")
    if recipe.split_shortcuts and shortcut_split(model.denoiser, site.name) is not None:
        found.append("each part of this concatenated input has a grid of its own")
    if form.search == "mse":
        found.append("ranges are narrowed to the least error")
    if form.search == "mse_by_step":
        found.append("ranges are the mean of each step's of least error")
    if form.search == "percentile":
        found.append("ranges leave out the outermost 0.1 % at either end")
    return found
