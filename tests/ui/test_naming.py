"""What recipes are called: named ones always by their name, others by how far they are from one."""

from __future__ import annotations

import dataclasses

import pytest

from qvd_core.formats import HTDQ, ActivationFormat, ChannelBalancing, Override, TemporalBlock, WeightFormat
from qvd_core.recipe import BITS, METHODS, RECIPES, Recipe, get_recipe
from ui.naming import at_bits, bits_in_words, bits_of, method_of, named, of_method, parse_bits


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_equal_to_a_named_one_gets_its_name(recipe: Recipe) -> None:
    assert named(dataclasses.replace(recipe, name="x")) is recipe
    assert recipe.name == f"{method_of(recipe)}-{bits_of(recipe)}"


@pytest.mark.parametrize("bits", BITS, ids=lambda bits: "w{}a{}".format(*bits))
@pytest.mark.parametrize("method", METHODS)
def test_a_method_at_bits_is_the_named_recipe(method: str, bits: tuple[int, int]) -> None:
    assert of_method(method, *bits) is get_recipe("{}-w{}a{}".format(method, *bits))


def test_a_method_at_bits_of_its_own_keeps_its_method() -> None:
    recipe = of_method("qvd", 3, 7)
    assert recipe.name == "qvd-w3a7"
    assert method_of(recipe) == "qvd"
    assert (recipe.temporal, recipe.channels) == (get_recipe("qvd-w8a8").temporal, get_recipe("qvd-w8a8").channels)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"temporal": None}, "qvd-scri-w4a8"),
        ({"channels": None}, "qvd-htdq-w4a8"),
        ({"temporal": None, "channels": None}, "qvd-base-w4a8"),
        ({"temporal": HTDQ(form="H2")}, "custom-w4a8+2"),
        ({"temporal": TemporalBlock()}, "custom-w4a8+2"),
        ({"channels": ChannelBalancing()}, "custom-w4a8+2"),
        ({"split_shortcuts": True}, "custom-w4a8+2"),
        ({"overrides": ()}, "qvd-w4a8+0"),
        ({"overrides": (Override("first_layer", 8, 8),)}, "qvd-w4a8+1"),
        ({"weights": None}, "custom-wfloat-a8+2"),
        ({"activations": None}, "custom-w4-afloat+2"),
        ({"weights": None, "activations": None, "overrides": ()}, "custom-wfloat-afloat"),
        ({"weights": WeightFormat(4)}, "custom-w4a8+2"),
        ({"activations": ActivationFormat(8, "static_per_frame")}, "custom-w4a8+2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_every_field_counts(change: dict, name: str) -> None:
    recipe = named(dataclasses.replace(get_recipe("qvd-w4a8"), **change))
    assert recipe.name == name
    assert dataclasses.replace(recipe, name="qvd-w4a8") == dataclasses.replace(get_recipe("qvd-w4a8"), **change)


def test_names_made_here_survive_a_link() -> None:
    """A link refuses a recipe under the name of another one."""
    for recipe in (of_method("mse", 3, 3), named(get_recipe("qvd-w4a4").override("conv_in", 4, 4))):
        assert Recipe.from_query(recipe.to_query()) == recipe


def test_bits_change_nothing_else() -> None:
    recipe = dataclasses.replace(get_recipe("os-plus-w8a8"), name="mine")
    changed = at_bits(recipe, 3, 5)
    assert (changed.weights, changed.activations) == (WeightFormat(3, symmetric=False), ActivationFormat(5))
    assert at_bits(changed, 8, 8) == recipe


def test_bits_quantize_what_was_in_floating_point() -> None:
    recipe = at_bits(Recipe("none", None, None), 4, 8)
    assert (recipe.weights, recipe.activations) == (WeightFormat(4), ActivationFormat(8))


@pytest.mark.parametrize(
    ("recipe", "text", "words", "numbers"),
    [
        (get_recipe("qvd-w4a8"), "w4a8", "W4A8", (4, 8)),
        (Recipe("x", WeightFormat(2), ActivationFormat(16)), "w2a16", "W2A16", (2, 16)),
        (Recipe("x", None, ActivationFormat(16)), "wfloat-a16", "A16, float weights", (8, 16)),
        (Recipe("x", WeightFormat(2), None), "w2-afloat", "W2, float inputs", (2, 8)),
        (Recipe("x", None, None), "wfloat-afloat", "all float", (8, 8)),
    ],
    ids=["named", "wide", "weights-float", "inputs-float", "all-float"],
)
def test_bits_as_text_and_back(recipe: Recipe, text: str, words: str, numbers: tuple[int, int]) -> None:
    assert (bits_of(recipe), bits_in_words(recipe)) == (text, words)
    assert parse_bits(text) == numbers
