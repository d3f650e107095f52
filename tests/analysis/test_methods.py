"""What methods touch, against the variants the library really builds; and the words beside figures."""

from __future__ import annotations

import dataclasses

import pytest

from analysis.methods import bound_to_steps, temporal_sites, transformed_sites, unlike_the_figure
from qvd_core.calibration.statistics import Statistics
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
from qvd_core.layers.inputs import Logarithmic, StaticPerStep
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.variant import quantize

DYNAMIC = get_recipe("dynamic-w8a8")
BASE = get_recipe("qvd-base-w8a8")
PER_STEP = dataclasses.replace(BASE, activations=ActivationFormat(8, "static_per_step"))
RECIPES = {
    "base": BASE,
    "dynamic": DYNAMIC,
    "htdq": get_recipe("qvd-htdq-w8a8"),
    "htdq-dynamic": dataclasses.replace(DYNAMIC, temporal=HTDQ()),
    "htdq-no-inputs": Recipe("x", WeightFormat(8), None, temporal=HTDQ()),
    "htdq-exempted": get_recipe("qvd-htdq-w8a8").override("temporal_features", 8, None),
    "block": get_recipe("tfmq-dm-w8a8"),
    "block-dynamic": dataclasses.replace(DYNAMIC, temporal=TemporalBlock()),
    "block-exempted": get_recipe("tfmq-dm-w8a8").override("time_embedding", 8, None),
    "tabulated": get_recipe("tabulated-w8a8"),
    "tabulated-dynamic": dataclasses.replace(DYNAMIC, temporal=Tabulated()),
    "per-step": PER_STEP,
    "per-step-htdq-alone": dataclasses.replace(
        PER_STEP, temporal=HTDQ(), overrides=(Override("*", 8, None), Override("temporal_features", 8, 8))
    ),
    "scri": get_recipe("qvd-scri-w8a8"),
    "everywhere": get_recipe("smoothquant-w8a8"),
    "everywhere-but-time": dataclasses.replace(get_recipe("smoothquant-w8a8"), temporal=HTDQ()),
    "one-of-three-readers": dataclasses.replace(BASE, channels=ChannelBalancing(sites=("*.attn1.to_q",))),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_layers_named_are_those_of_the_variant(model: VideoModel, statistics: Statistics, recipe: Recipe) -> None:
    variant = quantize(model, recipe, statistics)
    modules = {site.name: variant.denoiser.get_submodule(site.name) for site in model.sites}
    inputs = {name: list(module.modules()) for name, module in modules.items()}

    def having(kind: type) -> set[str]:
        return {name for name, parts in inputs.items() if any(isinstance(part, kind) for part in parts)}

    assert transformed_sites(model, recipe) == set(variant.transforms)
    assert bound_to_steps(model.sites, recipe) is bool(having(StaticPerStep) | having(TabulatedLayer))
    treated = {site.name for site in temporal_sites(model.sites, recipe)}
    if isinstance(recipe.temporal, Tabulated):
        assert having(TabulatedLayer) < treated
        assert {site.role for site in model.sites if site.name in treated - having(TabulatedLayer)} == {
            "time_embedding"
        }
    else:
        expected = having(StaticPerStep) if isinstance(recipe.temporal, TemporalBlock) else having(Logarithmic)
        assert treated == expected


def test_a_model_without_a_time_path_has_nothing_to_treat(wan: VideoModel) -> None:
    for name in ("qvd-htdq-w8a8", "tfmq-dm-w8a8", "tabulated-w8a8"):
        assert temporal_sites(wan.sites, get_recipe(name)) == []
        assert not bound_to_steps(wan.sites, get_recipe(name))


def words(model: VideoModel, recipe: Recipe, role: str, drawn: ActivationFormat | None = None) -> str:
    site = next(site for site in model.sites if site.role == role)
    form = recipe.formats(site.name, role)[1]
    return unlike_the_figure(model, recipe, site, drawn or form or ActivationFormat(8))


MIN_MAX = get_recipe("minmax-w8a8")


@pytest.mark.parametrize("role", ["temporal_features", "temporal_attention", "residual_convolution"])
def test_a_recipe_that_does_what_is_drawn_needs_no_words(model: VideoModel, role: str) -> None:
    assert words(model, MIN_MAX, role) == ""


@pytest.mark.parametrize(
    ("recipe", "role", "sentence"),
    [
        (get_recipe("qvd-w8a8"), "temporal_features", "The recipe rounds these values on a logarithmic grid (HTDQ)"),
        (get_recipe("tabulated-w8a8"), "temporal_features", "looks up in a table what the time path gives"),
        (get_recipe("tabulated-w8a8"), "time_embedding", "looks up in a table what the time path gives"),
        (Recipe("x", None, None), "temporal_features", "leaves this input in floating point; the 8-bit grid only"),
        (get_recipe("tfmq-dm-w8a8"), "temporal_features", "drawn: every step has a grid of its own and ranges are"),
        (DYNAMIC, "temporal_features", "drawn: every token gets a grid of its own as it arrives."),
        (get_recipe("percentile-w8a8"), "temporal_features", "drawn: ranges leave out the outermost 0.1 % at either"),
        (get_recipe("qvd-base-w8a8"), "temporal_attention", "drawn: ranges are narrowed to the least error."),
        (get_recipe("qvd-base-w8a8"), "spatial_attention", "every frame has a grid of its own and ranges are narrowed"),
        (get_recipe("qvd-w8a8"), "temporal_attention", "channels are first shifted and scaled (SCRI) and ranges are"),
        (get_recipe("qvd-shift-w8a8"), "temporal_attention", "channels are first shifted (SCRI) and"),
        (get_recipe("qvd-scale-w8a8"), "temporal_attention", "channels are first scaled (SCRI) and"),
        (get_recipe("os-plus-w8a8"), "text_attention", "channels are first shifted and scaled (Outlier Suppression+)."),
        (get_recipe("smoothquant-w8a8"), "temporal_features", "channels are first balanced against the weights."),
        (
            dataclasses.replace(BASE, channels=ShiftAndScale(sites=("spatial_attention",))),
            "spatial_attention",
            "first shifted and scaled (Outlier Suppression+) and ranges are narrowed to the least error.",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else value if len(str(value)) < 25 else "",
)
def test_what_is_not_drawn_is_said(model: VideoModel, recipe: Recipe, role: str, sentence: str) -> None:
    assert sentence in words(model, recipe, role)


def test_a_grid_of_the_other_symmetry_is_said(model: VideoModel) -> None:
    symmetric = dataclasses.replace(MIN_MAX, activations=ActivationFormat(8, symmetric=True))
    assert words(model, symmetric, "temporal_features") == ""
    drawn = ActivationFormat(8)
    assert words(model, symmetric, "temporal_features", drawn).endswith("drawn: the grid is symmetric.")


def test_split_shortcuts_are_said_where_there_are_any(model: VideoModel) -> None:
    recipe = dataclasses.replace(MIN_MAX, split_shortcuts=True)
    split = [s for s in model.sites if s.role == "shortcut_convolution" and s.name.startswith("up_blocks")]
    assert "each part of this concatenated input" in unlike_the_figure(model, recipe, split[0], ActivationFormat(8))
    assert words(model, recipe, "residual_convolution") == ""
