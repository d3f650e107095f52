"""Whether a recipe fits a model and its statistics, told before anything is built."""

from __future__ import annotations

from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import CalibrationError, RecipeError
from qvd_core.formats import matches
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe


def check_recipe(model: VideoModel, recipe: Recipe, statistics: Statistics | None) -> None:
    """Refuse what `quantize` would, as far as can be told at once.

    Raises:
        RecipeError: a pattern matches no site.
        CalibrationError: statistics are needed and absent, or of another model or sampler; or temporal
            features are treated that the model does not have.
    """
    check_overrides(model, recipe)
    if recipe.temporal is not None and not any(site.role == "temporal_features" for site in model.sites):
        raise CalibrationError(
            f"{recipe.name} treats temporal features, and {model.spec.name} ({type(model.denoiser).__name__}) has no"
            " layers known to take them; choose a recipe without a temporal method, such as qvd-scri or mse."
        )
    if statistics is not None:
        statistics.check_model(model.spec.name, model.fingerprint)
        sampler = type(model.pipeline.scheduler).__name__
        if recipe.needs_statistics and statistics.run.sampler != sampler:
            raise CalibrationError(
                f"These statistics were made with {statistics.run.sampler}, but {model.spec.name} samples with"
                f" {sampler}, whose steps differ; calibrate again."
            )
    elif recipe.needs_statistics:
        raise CalibrationError(
            f"{recipe.name} relies on calibrated ranges: pass statistics=calibrate(model, prompts), or use a"
            " dynamic recipe."
        )


def check_overrides(model: VideoModel, recipe: Recipe) -> None:
    """Refuse a pattern that would silently do nothing.

    Raises:
        RecipeError: it matches no site; the message lists the model's roles.
    """
    patterns = [override.sites for override in recipe.overrides]
    if recipe.channels is not None:
        patterns += recipe.channels.sites
    for pattern in patterns:
        if not any(matches(pattern, site.name, site.role) for site in model.sites):
            roles = ", ".join(sorted({site.role for site in model.sites}))
            raise RecipeError(
                f"No site of {model.spec.name} matches {pattern!r}; use a module path or a role: {roles}."
            )
