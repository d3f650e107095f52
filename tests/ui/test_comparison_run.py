"""One comparison from button to result, with every method, and refused early where it cannot be."""

from __future__ import annotations

import dataclasses

import pytest

from qvd_core.calibration.calibrate import calibrate
from qvd_core.calibration.statistics import Statistics
from qvd_core.errors import GenerationError
from qvd_core.formats import ActivationFormat, Tabulated
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import METHODS, Recipe, get_recipe
from tests.conftest import CAPTION
from ui.comparison_run import Progress, Request, Result, run_comparison
from ui.registry import Registry

PER_STEP = dataclasses.replace(get_recipe("mse-w8a8"), activations=ActivationFormat(8, "static_per_step"), name="x")


@pytest.fixture
def registry(model: VideoModel, statistics: Statistics) -> Registry:
    filled = Registry(any_model=True)
    filled._models.put("tiny", model)
    filled.keep_statistics(model, statistics)
    return filled


def run(registry: Registry, recipe: Recipe, steps: int | None = None) -> tuple[Result, list[Progress]]:
    seen: list[Progress] = []
    return run_comparison(registry, Request("tiny", recipe, CAPTION, 0, steps, None), seen.append), seen


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(registry: Registry, method: str) -> None:
    result, seen = run(registry, get_recipe(f"{method}-w8a8"))
    assert result.variant.recipe.name == f"{method}-w8a8"
    assert 0 < result.scores.latent_error[-1] < 1
    assert [round(p.share, 2) for p in seen[-4:]] == [0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    "recipe",
    [
        get_recipe("tfmq-dm-w8a8"),
        get_recipe("tabulated-w8a8"),
        PER_STEP,
        dataclasses.replace(get_recipe("dynamic-w8a8"), temporal=Tabulated(), name="table-without-statistics"),
    ],
    ids=lambda recipe: recipe.name,
)
def test_steps_a_recipe_does_not_know_are_refused_before_anything_is_sampled(
    registry: Registry, recipe: Recipe
) -> None:
    seen: list[Progress] = []
    with pytest.raises(
        GenerationError, match="knows the 2 steps of its calibration only; sampling in 5 would"
    ) as error:
        run_comparison(registry, Request("tiny", recipe, CAPTION, 0, 5, None), seen.append)
    assert "Set Steps to 2" in str(error.value)
    assert [progress.text for progress in seen] == ["Loading tiny…"]


def test_steps_the_calibrated_sampler_visits_too_are_sampled(model: VideoModel, registry: Registry) -> None:
    """Half as many steps meet timesteps that all have their ranges."""
    registry.keep_statistics(model, calibrate(model, [CAPTION], steps=4))
    result, _ = run(registry, PER_STEP, 2)
    assert len(result.scores.latent_error) == 2


@pytest.mark.parametrize("name", ["qvd-w8a8", "minmax-w8a8", "dynamic-w8a8"])
def test_other_recipes_take_any_number_of_steps(registry: Registry, name: str) -> None:
    result, _ = run(registry, get_recipe(name), 3)
    assert len(result.scores.latent_error) == 3


def test_a_model_without_statistics_is_not_calibrated_in_vain(model: VideoModel) -> None:
    empty = Registry(any_model=True)
    empty._models.put("tiny", model)
    with pytest.raises(GenerationError, match="Set Steps to 2"):
        run(empty, PER_STEP, 5)
    assert empty.statistics(model) is None
