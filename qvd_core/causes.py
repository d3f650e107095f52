"""Which part of a recipe makes the error: weights, layer inputs or the time path, each switched on alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import RecipeError
from qvd_core.formats import Override, Tabulated, matches
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import TIME_PATH, Channels, Recipe
from qvd_core.sampling import Clip, Settings, StepInfo, generate
from qvd_core.scores import compare
from qvd_core.variant import quantize

ALL = "all of it"
OnClip = Callable[[str, int, int, StepInfo], None]


def parts(model: VideoModel, recipe: Recipe) -> dict[str, Recipe]:
    """Recipes that do one part of what `recipe` does, by the part's name, and last `recipe` itself.

    "weights", everywhere; "layer inputs", outside the time path; "time path", weights and inputs of the time
    embedding and of the layers that take temporal features. Parts the recipe or the model does not have are
    left out. Their errors do not add up: one can hide or amplify another.
    """
    found: dict[str, Recipe] = {}
    tabulated = isinstance(recipe.temporal, Tabulated)  # exact, and so never a cause
    roles = sorted({site.role for site in model.sites})
    time_roles, other_roles = [r for r in roles if r in TIME_PATH], [r for r in roles if r not in TIME_PATH]
    weights = any(recipe.formats(site.name, site.role)[0] is not None for site in model.sites)
    inputs = any(
        recipe.formats(site.name, site.role)[1] is not None for site in model.sites if site.role not in TIME_PATH
    )
    if weights:
        found["weights"] = dataclasses.replace(
            recipe,
            name=f"{recipe.name}, weights only",
            activations=None,
            overrides=tuple(dataclasses.replace(o, activation_bits=None) for o in recipe.overrides),
            temporal=recipe.temporal if tabulated else None,
        )
    exempt = tuple(Override(role, None, None) for role in time_roles)
    if inputs:
        found["layer inputs"] = dataclasses.replace(
            recipe,
            name=f"{recipe.name}, layer inputs only",
            weights=None,
            overrides=(*(dataclasses.replace(o, weight_bits=None) for o in recipe.overrides), *exempt),
            temporal=None,
        )
    timed = any(recipe.formats(site.name, site.role) != (None, None) for site in model.sites if site.role in TIME_PATH)
    if timed:
        found["time path"] = dataclasses.replace(
            recipe,
            name=f"{recipe.name}, time path only",
            overrides=(*recipe.overrides, *(Override(role, None, None) for role in other_roles)),
            channels=_in_time_path(model, recipe),
            split_shortcuts=False,
        )
    return found | {ALL: recipe}


def _in_time_path(model: VideoModel, recipe: Recipe) -> Channels | None:
    """What `recipe` does to channels in the time path, where it has no method of its own."""
    if recipe.channels is None or recipe.temporal is not None:
        return None
    patterns = recipe.channels.sites
    timed = [site for site in model.sites if site.role in TIME_PATH]
    meant = tuple(site.name for site in timed if any(matches(p, site.name, site.role) for p in patterns))
    return dataclasses.replace(recipe.channels, sites=meant) if meant else None


def error_growth(
    model: VideoModel,
    recipe: Recipe,
    settings: Settings,
    statistics: Statistics | None = None,
    on_step: OnClip | None = None,
) -> dict[str, tuple[float, ...]]:
    """How far the latents are from those of full precision after each step, for every part of `recipe`.

    Samples one clip in full precision and one for each part.

    Args:
        settings: the clip; as many steps as the recipe is bound to, if it is.
        on_step: called as on_step(part, number of the clip, count of clips, step); raising from it ends the run.

    Returns:
        By part, |z' - z| / |z| after each step, see `qvd_core.metrics.fidelity`.

    Raises:
        RecipeError: the recipe quantizes nothing.
        CalibrationError, GenerationError: as `quantize` and `generate`.
    """
    recipes: Mapping[str, Recipe] = parts(model, recipe)
    if len(recipes) == 1:
        raise RecipeError(f"{recipe.name} quantizes nothing, so there is no error to explain.")

    def telling(part: str, number: int) -> Callable[[StepInfo], None] | None:
        return None if on_step is None else lambda info: on_step(part, number, len(recipes) + 1, info)

    reference: Clip = generate(model, settings, telling("full precision", 0))
    found = {}
    for number, (part, own) in enumerate(recipes.items(), start=1):
        clip = generate(quantize(model, own, statistics), settings, telling(part, number))
        found[part] = compare(reference, clip).latent_error
    return found
