"""Methods in words: every method has some, and layer counts are those of the model at hand."""

from __future__ import annotations

import dataclasses

import pytest

from qvd_core.formats import ACTIVATION_RANGES, RANGE_SEARCHES, ActivationFormat, ShiftAndScale, TemporalBlock
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import METHODS, RECIPES, Recipe, get_recipe
from ui import method_words
from ui.method_words import channel_choice, channel_words, requirements, temporal_choice, temporal_words


def test_every_method_has_a_name_of_its_own_and_a_sentence() -> None:
    assert list(method_words.METHODS) == list(METHODS)
    names = [name for name, _ in method_words.METHODS.values()]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 22 for name in names)  # the width of the menu
    assert all(sentence.endswith(".") for _, sentence in method_words.METHODS.values())


def test_every_range_and_search_can_be_chosen() -> None:
    assert tuple(value for _, value in method_words.RANGES) == ACTIVATION_RANGES
    assert set(method_words.RANGE_WORDS) == set(ACTIVATION_RANGES)
    assert tuple(value for _, value in method_words.SEARCHES) == RANGE_SEARCHES


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_choice_is_on_the_menu_and_explained(recipe: Recipe) -> None:
    assert temporal_choice(recipe) in dict(map(reversed, method_words.TEMPORAL))
    assert channel_choice(recipe) in dict(map(reversed, method_words.CHANNELS))
    assert temporal_words(recipe, None) == method_words.TEMPORAL_WORDS[temporal_choice(recipe)]
    assert channel_words(recipe, None) == method_words.CHANNEL_WORDS[channel_choice(recipe)]


def test_layers_are_counted_on_the_model(model: VideoModel) -> None:
    count = {role: sum(site.role == role for site in model.sites) for role in {site.role for site in model.sites}}
    name, total = model.spec.name, len(model.sites)
    qvd = get_recipe("qvd-w8a8")
    features, path = count["temporal_features"], count["temporal_features"] + count["time_embedding"]
    assert temporal_words(qvd, model).endswith(f"Here: {features} of the {total} layers of {name}.")
    assert f"Here: {path} of the" in temporal_words(get_recipe("tfmq-dm-w8a8"), model)
    assert f"Here: {path} of the" in temporal_words(get_recipe("tabulated-w8a8"), model)
    assert f"Here: {count['temporal_attention']} of the" in channel_words(qvd, model)
    everywhere = dataclasses.replace(qvd, channels=ShiftAndScale(sites=("*",)))
    assert f"Here: {total - path} of the" in channel_words(everywhere, model)
    assert "Here" not in temporal_words(get_recipe("mse-w8a8"), model) + channel_words(get_recipe("mse-w8a8"), model)


def test_a_method_that_does_nothing_is_said_to(model: VideoModel, wan: VideoModel) -> None:
    qvd, dynamic = get_recipe("qvd-w8a8"), ActivationFormat(8, "dynamic_per_token")
    assert temporal_words(qvd, wan).endswith(f"as no layer of {wan.spec.name} is known to take temporal features.")
    floating = dataclasses.replace(qvd, activations=None, overrides=())
    assert temporal_words(floating, model).endswith("as the recipe leaves these inputs in floating point.")
    block = dataclasses.replace(qvd, activations=dynamic, temporal=TemporalBlock())
    assert temporal_words(block, model).endswith("as the recipe fixes no ranges for these inputs.")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dynamic-w8a8", "Needs no calibration."),
        ("qvd-w8a8", "Needs calibration."),
        ("tfmq-dm-w8a8", "Needs calibration. Its ranges hold for the steps of the calibrated sampler only."),
        ("tabulated-w8a8", "Needs calibration. Its table holds for the steps of the calibrated sampler only."),
    ],
)
def test_what_a_recipe_needs(model: VideoModel, name: str, text: str) -> None:
    assert requirements(get_recipe(name), model) == text
