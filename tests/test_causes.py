"""Which part of a recipe makes the error: what each part switches on, and what is measured."""

from __future__ import annotations

import dataclasses

import pytest

from qvd_core.calibration.statistics import Statistics
from qvd_core.causes import ALL, error_growth, parts
from qvd_core.errors import Cancelled, RecipeError
from qvd_core.formats import HTDQ, ActivationFormat, ChannelBalancing, Override, ShiftAndScale, Tabulated, WeightFormat
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import TIME_PATH, Recipe, get_recipe
from qvd_core.sampling import Clip, Settings, generate
from qvd_core.scores import compare
from qvd_core.variant import quantize

WEIGHTS, INPUTS, TIME = "weights", "layer inputs", "time path"
NO_TIME = Recipe("x", WeightFormat(4), None).override("time_embedding", None, None)
EXPECTED = {
    "minmax": (get_recipe("minmax-w4a8"), (WEIGHTS, INPUTS, TIME, ALL)),
    "qvd": (get_recipe("qvd-w4a4"), (WEIGHTS, INPUTS, TIME, ALL)),
    "q-diffusion": (get_recipe("q-diffusion-w8a8"), (WEIGHTS, INPUTS, TIME, ALL)),
    "smoothquant": (get_recipe("smoothquant-w8a8"), (WEIGHTS, INPUTS, TIME, ALL)),
    "tabulated": (get_recipe("tabulated-w8a8"), (WEIGHTS, INPUTS, ALL)),
    "dynamic": (get_recipe("dynamic-w4a4"), (WEIGHTS, INPUTS, TIME, ALL)),
    "weight-only": (Recipe("x", WeightFormat(4), None), (WEIGHTS, TIME, ALL)),
    "inputs-only": (Recipe("x", None, ActivationFormat(4, "dynamic_per_token")), (INPUTS, TIME, ALL)),
    "one-role": (Recipe("x", None, None, (Override("temporal_attention", 4, 4),)), (WEIGHTS, INPUTS, ALL)),
    "all-but-time": (NO_TIME.override("temporal_features", None, None), (WEIGHTS, ALL)),
    "time-alone": (Recipe("x", None, None, (Override("temporal_features", 4, 4),)), (WEIGHTS, TIME, ALL)),
    "nothing": (Recipe("x", None, None), (ALL,)),
    "table-alone": (Recipe("x", None, None, temporal=Tabulated()), (ALL,)),
}
RECIPES = {name: recipe for name, (recipe, _) in EXPECTED.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_part_is_there_if_the_recipe_does_it(model: VideoModel, name: str) -> None:
    recipe, expected = EXPECTED[name]
    found = parts(model, recipe)
    assert tuple(found) == expected
    assert found[ALL] is recipe
    names = [part.name for part in found.values()]
    assert len(set(names)) == len(names)


def test_a_model_without_a_time_path_has_no_such_part(wan: VideoModel) -> None:
    assert tuple(parts(wan, get_recipe("dynamic-w8a8"))) == (WEIGHTS, INPUTS, ALL)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_each_part_keeps_the_formats_of_the_recipe_and_drops_all_others(model: VideoModel, recipe: Recipe) -> None:
    found = parts(model, recipe)
    for site in model.sites:
        weights, inputs = recipe.formats(site.name, site.role)
        timed = site.role in TIME_PATH
        expected = {
            WEIGHTS: (weights, None),
            INPUTS: (None, None if timed else inputs),
            TIME: (weights, inputs) if timed else (None, None),
        }
        for part, formats in expected.items():
            if part in found:
                assert found[part].formats(site.name, site.role) == formats, (part, site.name)


@pytest.mark.parametrize("name", ["minmax", "qvd", "tabulated", "dynamic", "smoothquant"])
def test_variants_quantize_that_part_alone(model: VideoModel, statistics: Statistics, name: str) -> None:
    roles = {site.name: site.role for site in model.sites}
    for part, recipe in parts(model, RECIPES[name]).items():
        denoiser = quantize(model, recipe, statistics).denoiser
        layers = {site: denoiser.get_submodule(site) for site in roles}
        coded = {s for s, layer in layers.items() if getattr(layer, "codes", None) is not None}
        rounded = {s for s, layer in layers.items() if getattr(layer, "quantize_input", None) is not None}
        timed = {s for s, role in roles.items() if role in TIME_PATH}
        if part == WEIGHTS:
            assert coded
            assert not rounded
        elif part == INPUTS:
            assert rounded
            assert not coded
            assert not rounded & timed
        elif part == TIME:
            assert coded == timed
            assert rounded <= timed
            original = {s for s in roles if type(layers[s]) is type(model.denoiser.get_submodule(s))}
            assert original == roles.keys() - timed


def test_the_table_of_the_time_path_stays_with_the_weights_and_never_counts_as_a_cause(model: VideoModel) -> None:
    found = parts(model, get_recipe("tabulated-w8a8"))
    assert found[WEIGHTS].temporal == Tabulated()
    assert found[INPUTS].temporal is None


def test_methods_go_with_the_part_they_belong_to(model: VideoModel) -> None:
    qvd = get_recipe("qvd-w8a8")
    found = parts(model, qvd)
    assert found[WEIGHTS].temporal is found[INPUTS].temporal is None
    assert found[TIME].temporal == qvd.temporal
    assert found[WEIGHTS].channels == found[INPUTS].channels == qvd.channels
    assert found[TIME].channels is None
    assert not parts(model, get_recipe("q-diffusion-w8a8"))[TIME].split_shortcuts


@pytest.mark.parametrize("method", [ChannelBalancing(), ShiftAndScale(sites=("*",))], ids=["balanced", "shifted"])
def test_channels_are_transformed_in_the_time_path_as_the_recipe_does(
    model: VideoModel, statistics: Statistics, method: ChannelBalancing | ShiftAndScale
) -> None:
    recipe = dataclasses.replace(get_recipe("smoothquant-w8a8"), channels=method)
    whole, timed = (quantize(model, r, statistics) for r in (recipe, parts(model, recipe)[TIME]))
    names = {site.name for site in model.sites if site.role in TIME_PATH}
    assert timed.transforms.keys() == names & whole.transforms.keys() != set()
    for name, transform in timed.transforms.items():
        assert transform.scale.equal(whole.transforms[name].scale), name
        assert transform.shift.equal(whole.transforms[name].shift), name
    assert parts(model, dataclasses.replace(recipe, temporal=HTDQ()))[TIME].channels is None


@pytest.mark.parametrize("name", ["dynamic", "qvd"])
def test_errors_are_those_of_comparing_the_clips(
    model: VideoModel, statistics: Statistics, settings: Settings, reference: Clip, name: str
) -> None:
    recipe = RECIPES[name]
    needed = statistics if recipe.needs_statistics else None
    growth = error_growth(model, recipe, settings, needed)
    assert tuple(growth) == EXPECTED[name][1]
    for part, own in parts(model, recipe).items():
        assert len(growth[part]) == settings.steps
        if part in (ALL, TIME):
            clip = generate(quantize(model, own, needed), settings)
            assert growth[part] == compare(reference, clip).latent_error
        assert all(error > 0 for error in growth[part]), part


@pytest.mark.parametrize("name", ["nothing", "table-alone"])
def test_a_recipe_without_errors_has_nothing_to_explain(model: VideoModel, settings: Settings, name: str) -> None:
    with pytest.raises(RecipeError, match="x quantizes nothing, so there is no error to explain"):
        error_growth(model, RECIPES[name], settings)


def test_progress_counts_every_clip_and_raising_ends_the_run(model: VideoModel, settings: Settings) -> None:
    seen = []

    def stop(part: str, number: int, count: int, info) -> None:
        seen.append((part, number, count, info.index))
        if number == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        error_growth(model, RECIPES["dynamic"], settings, on_step=stop)
    assert seen == [
        ("full precision", 0, 5, 0),
        ("full precision", 0, 5, 1),
        (WEIGHTS, 1, 5, 0),
        (WEIGHTS, 1, 5, 1),
        (INPUTS, 2, 5, 0),
    ]
