"""Recipes as values: hashable, round trips through every form, early refusals that echo what came in."""

from __future__ import annotations

import base64
import dataclasses
import json
import pickle
import zlib
from dataclasses import replace
from urllib.parse import quote

import pytest

from qvd_core.errors import RecipeError
from qvd_core.formats import (
    HTDQ,
    ActivationFormat,
    ChannelBalancing,
    Override,
    ShiftAndScale,
    Tabulated,
    TemporalBlock,
    WeightFormat,
)
from qvd_core.recipe import BITS, METHODS, RECIPES, Recipe, get_recipe

CUSTOM = [
    Recipe("mine & yours = 100 %", WeightFormat(3, symmetric=False), ActivationFormat(7, "dynamic_per_token", True)),
    Recipe("weights-only", WeightFormat(2), None),
    Recipe("inputs-only", None, ActivationFormat(16, symmetric=True)),
    Recipe("nothing", None, None),
    Recipe(
        "with-overrides",
        WeightFormat(4),
        ActivationFormat(8),
        (Override("temporal_attention", 8, None), Override("up_blocks.*", None, 16), Override("conv_in", None, None)),
    ),
]
CUSTOM += [
    Recipe("htdq", None, None, temporal=HTDQ(form="H2", sign_inside=False, coefficient=2.5, centred=True)),
    Recipe("port", WeightFormat(8), ActivationFormat(8, "static_per_frame"), temporal=HTDQ(port=True)),
    Recipe("block", WeightFormat(8), ActivationFormat(8, "static_per_step"), temporal=TemporalBlock()),
    Recipe("table", None, None, temporal=Tabulated(), split_shortcuts=True),
    Recipe("shift", None, None, channels=ShiftAndScale(scale=False, sites=("*.to_q", "linear"), steps="first")),
    Recipe(
        "balance",
        None,
        ActivationFormat(4, search="percentile"),
        channels=ChannelBalancing(strength=0.15, sites=("conv_in",)),
    ),
]
every_recipe = pytest.mark.parametrize("recipe", [*RECIPES.values(), *CUSTOM], ids=lambda r: r.name)


@every_recipe
def test_a_recipe_is_a_value(recipe):
    copy = pickle.loads(pickle.dumps(recipe))
    assert copy == recipe
    assert hash(copy) == hash(recipe)
    assert {recipe: 1}[copy] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"


@every_recipe
def test_dictionary_and_link_give_the_recipe_back(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_query(recipe.to_query()) == recipe
    assert Recipe.from_query("?" + recipe.to_query() + "&other=1") == recipe


def test_links_to_named_recipes_are_short():
    assert get_recipe("minmax-w4a8").to_query() == "recipe=minmax-w4a8"


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 2.5, 4.0, True, "8", None], ids=repr)
@pytest.mark.parametrize("build", [WeightFormat, lambda b: Recipe.from_dict(recipe_dict(bits=b))], ids=["call", "dict"])
def test_weight_bits_out_of_range(build, bits):
    with pytest.raises(RecipeError, match=rf"weight bits = {bits!r} is out of range; choose 2 to 8"):
        build(bits)


@pytest.mark.parametrize("bits", [2, 17, 8.0, False, "8", None], ids=repr)
def test_activation_bits_out_of_range(bits):
    with pytest.raises(RecipeError, match=rf"activation bits = {bits!r} is out of range; choose 3 to 16"):
        ActivationFormat(bits)


@pytest.mark.parametrize("bits", [*range(2, 9)])
def test_every_weight_width_in_range_is_allowed(bits):
    assert WeightFormat(bits).bits == bits


@pytest.mark.parametrize("bits", [*range(3, 17)])
def test_every_activation_width_in_range_is_allowed(bits):
    assert ActivationFormat(bits).bits == bits


@pytest.mark.parametrize("name", ["per_tensor", "", None, 8, ["static_per_tensor"]], ids=repr)
def test_unknown_activation_range(name):
    with pytest.raises(
        RecipeError,
        match=r"Unknown activation range .*; choose from static_per_tensor, static_per_frame, static_per_step, dynamic",
    ):
        ActivationFormat(8, name)


@pytest.mark.parametrize("value", ["no", 0, 1, None, []], ids=repr)
@pytest.mark.parametrize("build", [WeightFormat, lambda *a, **k: ActivationFormat(*a, **k)], ids=["weights", "inputs"])
def test_symmetric_is_true_or_false(build, value):
    with pytest.raises(RecipeError, match="symmetric"):
        build(8, symmetric=value)


@pytest.mark.parametrize(
    ("sites", "weight_bits", "activation_bits", "message"),
    [
        ("", 4, 4, "names a role or a module path, not ''"),
        (None, 4, 4, "names a role or a module path, not None"),
        (3, 4, 4, "not 3"),
        ("conv_in", 9, 4, "weight bits = 9"),
        ("conv_in", 4, 17, "activation bits = 17"),
        ("conv_in", True, 4, "weight bits = True"),
    ],
    ids=["empty", "none", "number", "weights", "activations", "bool"],
)
def test_wrong_overrides(sites, weight_bits, activation_bits, message):
    with pytest.raises(RecipeError, match=message):
        Override(sites, weight_bits, activation_bits)


def recipe_dict(bits=8, **changes):
    return {"name": "x", "weights": {"bits": bits}, "activations": None, "overrides": []} | changes


@pytest.mark.parametrize(
    "junk",
    [
        {},
        [],
        None,
        "minmax-w8a8",
        {"name": "x", "weights": None},
        recipe_dict(weights=5),
        recipe_dict(weights={"bits": 8, "colour": "red"}),
        recipe_dict(weights={}),
        recipe_dict(activations=[8]),
        recipe_dict(overrides=[{"sites": "conv_in"}]),
        recipe_dict(overrides=[7]),
        recipe_dict(overrides=7),
        recipe_dict(method="magic"),
        recipe_dict(temporal="htdq"),
        recipe_dict(temporal={}),
        recipe_dict(temporal={"method": "magic"}),
        recipe_dict(temporal={"method": ["htdq"]}),
        recipe_dict(temporal={"method": "shift_and_scale"}),
        recipe_dict(temporal={"method": "htdq", "colour": "red"}),
        recipe_dict(channels={"method": "tabulated"}),
        recipe_dict(channels=["shift_and_scale"]),
        recipe_dict(channels={"method": "shift_and_scale", "sites": 5}),
    ],
    ids=lambda junk: json.dumps(junk)[:60],
)
def test_junk_is_no_recipe(junk):
    with pytest.raises(RecipeError, match="Not a recipe"):
        Recipe.from_dict(junk)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "Unknown recipe ''"),
        ("recipe=", "Unknown recipe ''"),
        ("recipe=minmax-w3a3", r"Unknown recipe 'minmax-w3a3'; choose METHOD-BITS.* minmax, .* w8a8, "),
        ("model=x", "Unknown recipe ''"),
        ("recipe=%7B%22name%22", "The recipe in this link is damaged"),
        ("recipe=%7B%7D", "Not a recipe"),
        ("recipe=" + quote(json.dumps(recipe_dict(bits=99))), "weight bits = 99"),
    ],
    ids=["nothing", "empty", "unknown", "other-key", "cut-short", "no-fields", "out-of-range"],
)
def test_damaged_links(query, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_query(query)


def test_a_link_cut_anywhere_is_refused_or_whole():
    """However a mail program breaks the link, the reader gets an error of ours."""
    query = CUSTOM[0].to_query()
    for length in range(len(query)):
        with pytest.raises(RecipeError):
            Recipe.from_query(query[:length])


def test_unknown_names_list_the_methods_and_bits():
    with pytest.raises(RecipeError) as caught:
        get_recipe("w8a8")
    message = str(caught.value).replace(",", " ").replace(".", " ").split()
    assert all(method in message and bits in message for method, bits in (n.rsplit("-", 1) for n in RECIPES))


def test_the_last_matching_override_decides():
    recipe = Recipe(
        "x",
        WeightFormat(4, symmetric=False),
        ActivationFormat(6, "dynamic_per_token", True),
        (Override("temporal_attention", 8, 16), Override("down_blocks.*", None, 3), Override("*.to_q", 2, None)),
    )
    weights, activations = recipe.formats("up_blocks.0.to_k", "temporal_attention")
    assert weights == WeightFormat(8, symmetric=False)
    assert activations == ActivationFormat(16, "dynamic_per_token", True)
    assert recipe.formats("down_blocks.1.to_k", "temporal_attention")[0] is None
    assert recipe.formats("down_blocks.1.to_q", "temporal_attention") == (WeightFormat(2, symmetric=False), None)
    assert recipe.formats("conv_in", "first_layer") == (recipe.weights, recipe.activations)


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("temporal_attention", True),
        ("up_blocks.2.motion_modules.0.to_q", True),
        ("up_blocks.2.*", True),
        ("*to_q", True),
        ("up_blocks.?.*", True),
        ("UP_BLOCKS.2.*", False),
        ("temporal*", False),
        ("up_blocks.2", False),
        ("attention", False),
    ],
)
def test_what_an_override_matches(pattern, hit):
    """A role as a whole, or a path by pattern; roles are not patterns."""
    assert Override(pattern, 8, 8).matches("up_blocks.2.motion_modules.0.to_q", "temporal_attention") is hit


def test_override_replaces_an_earlier_one_of_the_same_sites_and_moves_it_last():
    recipe = get_recipe("minmax-w4a4").override("a", 8, 8).override("b", 8, 8).override("a", None, 3)
    assert recipe.overrides == (Override("b", 8, 8), Override("a", None, 3))
    assert get_recipe("minmax-w4a4").overrides == ()


def test_overrides_of_a_floating_point_recipe_quantize_dynamically():
    recipe = Recipe("x", None, None).override("conv_in", 4, 5)
    assert recipe.formats("conv_in", "r") == (WeightFormat(4), ActivationFormat(5, "dynamic_per_token"))
    assert recipe.formats("conv_out", "r") == (None, None)
    assert not recipe.needs_statistics


@pytest.mark.parametrize(
    ("activations", "needed"),
    [(None, False), (ActivationFormat(8), True), (ActivationFormat(8, "dynamic_per_token"), False)],
    ids=["float", "static", "dynamic"],
)
def test_only_static_inputs_need_statistics(activations, needed):
    assert Recipe("x", WeightFormat(8), activations).needs_statistics is needed


def test_sites_of_a_method_are_a_list_in_a_dictionary():
    """A lone string would be read as one pattern for each of its letters."""
    values = recipe_dict(channels={"method": "channel_balancing", "sites": "conv_in"})
    with pytest.raises(RecipeError, match="conv_in"):
        Recipe.from_dict(values)


def test_the_time_path_follows_its_method():
    static, dynamic = ActivationFormat(8, "static_per_frame", search="mse"), ActivationFormat(8, "dynamic_per_token")
    for role in ("time_embedding", "temporal_features"):
        for inputs, expected in ((static, replace(static, range="static_per_step")), (dynamic, dynamic), (None, None)):
            recipe = Recipe("x", WeightFormat(4), inputs, temporal=TemporalBlock())
            assert recipe.formats("a", role) == (WeightFormat(4), expected)
            assert recipe.formats("a", "linear") == (WeightFormat(4), inputs)
            tabulated = replace(recipe, temporal=Tabulated(), overrides=(Override("*", 2, 3),))
            assert tabulated.formats("a", role) == (None, None)
            assert replace(recipe, temporal=HTDQ()).formats("a", role) == (WeightFormat(4), inputs)


def test_channels_need_statistics_and_methods_of_the_time_path_none():
    dynamic = ActivationFormat(8, "dynamic_per_token")
    assert Recipe("x", None, None, channels=ChannelBalancing()).needs_statistics
    assert Recipe("x", WeightFormat(8), dynamic, channels=ShiftAndScale()).needs_statistics
    assert not Recipe("x", WeightFormat(8), dynamic, temporal=HTDQ()).needs_statistics
    assert not Recipe("x", WeightFormat(8), None, temporal=Tabulated()).needs_statistics


def test_edges_keep_eight_bits_in_all_methods_that_are_compared():
    for name, recipe in RECIPES.items():
        if name.startswith(("minmax", "dynamic")):
            assert recipe.overrides == ()
            continue
        weights, inputs = recipe.formats("conv_in", "first_layer")
        assert (weights.bits, inputs.bits) == (8, 8)
        weights, inputs = recipe.formats("conv_out", "last_layer")
        assert (weights.bits, inputs) == (8, None)


def test_named_recipes_are_what_their_names_say():
    for name, recipe in RECIPES.items():
        method, _, widths = name.rpartition("-w")
        weight_bits, activation_bits = map(int, widths.split("a"))
        assert recipe.name == name
        assert (recipe.weights.bits, recipe.activations.bits) == (weight_bits, activation_bits)
        assert recipe.weights.symmetric is (method in ("minmax", "dynamic"))
        assert recipe.needs_statistics is (method != "dynamic")


def test_every_method_is_named_at_all_bits():
    assert list(RECIPES) == [f"{method}-w{w}a{a}" for method in METHODS for w, a in BITS]
    assert len(RECIPES) == 15 * 5


def test_a_known_name_cannot_stand_for_another_recipe():
    """Results are labelled by name, so a link must not pass something else off as a named recipe."""
    values = Recipe("minmax-w8a8", WeightFormat(4), None).to_dict()
    with pytest.raises(RecipeError, match="'minmax-w8a8' is the name of another recipe"):
        Recipe.from_dict(values)


def test_a_link_to_a_recipe_with_bits_for_every_layer_stays_short():
    recipe = get_recipe("qvd-w8a8")
    for number in range(200):
        path = f"up_blocks.{number % 4}.motion_modules.{number}.transformer_blocks.0.attn1.to_q"
        recipe = recipe.override(path, 4 + number % 5, 8)
    query = recipe.to_query()
    assert len(query) < 4000
    assert Recipe.from_query(query) == recipe


@pytest.mark.parametrize("text", ["z.", "z.AAAA", "z.!!", "z.eJw", "z." + "A" * 5000], ids=str)
def test_damaged_compressed_links(text):
    with pytest.raises(RecipeError):
        Recipe.from_query(f"recipe={text}")


def test_a_link_cannot_unpack_to_any_size():
    bomb = base64.urlsafe_b64encode(zlib.compress(b'{"' + b"a" * 50_000_000, 9)).decode()
    with pytest.raises(RecipeError, match="damaged"):
        Recipe.from_query(f"recipe=z.{bomb}")


def test_an_override_may_choose_another_range_and_search():
    recipe = get_recipe("mse-w4a8").override("temporal_attention", 4, 6, range="dynamic_per_token")
    recipe = recipe.override("conv_in", 8, 8, search="min_max")
    inputs = recipe.formats("x.attn1.to_q", "temporal_attention")[1]
    assert (inputs.bits, inputs.range, inputs.search) == (6, "dynamic_per_token", "mse")
    inputs = recipe.formats("conv_in", "first_layer")[1]
    assert (inputs.bits, inputs.range, inputs.search) == (8, "static_per_tensor", "min_max")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_query(recipe.to_query()) == recipe


def test_a_static_range_in_a_dynamic_recipe_needs_statistics():
    assert not get_recipe("dynamic-w8a8").needs_statistics
    assert not get_recipe("dynamic-w8a8").override("conv_in", 8, 6).needs_statistics
    assert get_recipe("dynamic-w8a8").override("conv_in", 8, 8, range="static_per_tensor").needs_statistics


@pytest.mark.parametrize("formats", [{"range": "per_galaxy"}, {"search": "luck"}], ids=str)
def test_overrides_of_unknown_formats(formats):
    with pytest.raises(RecipeError, match=r"Unknown (activation range|range search)"):
        get_recipe("mse-w4a8").override("conv_in", 8, 8, **formats)
