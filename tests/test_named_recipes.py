"""Every named recipe on a model: what each method does to which layers, and what it must not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.errors import CalibrationError, GenerationError, RecipeError
from qvd_core.formats import (
    HTDQ,
    ActivationFormat,
    ChannelBalancing,
    ShiftAndScale,
    Tabulated,
    TemporalBlock,
    WeightFormat,
)
from qvd_core.layers.inputs import (
    StaticPerFrame,
    StaticPerStep,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.methods.scri import centre_and_half_width, search_threshold, transform_at
from qvd_core.quantizers.uniform import make_grid
from qvd_core.recipe import METHODS, RECIPES, TIME_PATH, Recipe, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import quantize
from tests.closeness import assert_same
from tests.variants import PROMPT, difference, error_of, layer_of, methods, own_quantizer


@pytest.mark.parametrize("name", RECIPES)
def test_every_layer_has_the_bits_of_the_recipe(model, named, name):
    recipe, variant = get_recipe(name), named(name)
    for site in model.sites:
        weights, activations = recipe.formats(site.name, site.role)
        layer = layer_of(variant, site.name)
        if isinstance(layer, TabulatedLayer):
            continue
        if weights is None and activations is None and site.name not in variant.transforms:
            assert not isinstance(layer, QuantizedLayer), site.name
            continue
        assert (layer.codes is None) is (weights is None), site.name
        if weights is not None:
            ends = (-(2 ** (weights.bits - 1)) + weights.symmetric, 2 ** (weights.bits - 1) - 1)
            assert ends[0] <= int(layer.codes.min()) < int(layer.codes.max()) <= ends[1], site.name
        quantizer = own_quantizer(layer)
        assert (quantizer is None) is (activations is None), site.name
        if isinstance(quantizer, StaticPerTensor | StaticPerFrame | StaticPerStep | StaticSplit):
            assert quantizer.code_max - quantizer.code_min == 2**activations.bits - 1, site.name
            assert torch.isfinite(quantizer.scale).all(), site.name
            assert (quantizer.scale > 0).all(), site.name


@methods
def test_more_bits_come_closer(model, named, call, method):
    many, few = (
        difference(call(named(f"{method}-{bits}").denoiser), call(model.denoiser)) for bits in ("w8a8", "w4a4")
    )
    assert 0 < many < 0.7 * few


@pytest.fixture(scope="module")
def calibrated(model, statistics):
    """Settings of the first calibrated clip, all of whose values the recorded extremes contain; and that clip."""
    settings = default_settings(model, statistics.run.prompts[0], seed=statistics.run.seed)
    return settings, generate(model, settings)


@methods
def test_sixteen_bits_are_full_precision_up_to_rounding(model, statistics, calibrated, method):
    """Of inputs, over ranges that leave nothing out of the calibrated clip; weights stay in floating point."""
    named = get_recipe(f"{method}-w8a8")
    activations = replace(named.activations, bits=16, search="min_max")
    recipe = replace(named, name="x", weights=None, activations=activations, overrides=())
    settings, exact = calibrated
    assert 0 < error_of(generate(quantize(model, recipe, statistics), settings), exact) < 1e-3


def test_ranges_of_least_error_are_full_precision_too_given_enough_bits(model, statistics, calibrated):
    """A quantizer that is not exact in the limit of many bits clips what its search never saw."""
    settings, exact = calibrated
    recipe = Recipe("x", None, ActivationFormat(16, "static_per_step", search="mse"))
    assert error_of(generate(quantize(model, recipe, statistics), settings), exact) < 1e-2


def test_methods_differ(named, call):
    """No two are the same under different names."""
    assert len({call(named(f"{method}-w4a4").denoiser).numpy().tobytes() for method in METHODS}) == len(METHODS)


def test_scri_searches_for_what_the_attention_gives_out(model, statistics, named):
    """Of each temporal self-attention one threshold; spaced over all sampled sequences if they are many."""
    variant = named("qvd-w4a4")
    first = {site.name for site in model.sites if site.role == "temporal_attention" and site.name.endswith("to_q")}
    assert variant.thresholds.keys() == first
    for name in first:
        attention = model.denoiser.get_submodule(name.removesuffix(".to_q"))
        tokens = statistics.tokens[name].flatten(0, 1)
        centre, half_width = centre_and_half_width(statistics.low[name].amin(0), statistics.high[name].amax(0), True)
        weights = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
        recipe = get_recipe("qvd-w4a4")
        heads = (attention.heads, attention.scale)
        found = search_threshold(tokens, centre, half_width, weights, recipe.weights, recipe.activations, heads)
        assert_same(variant.thresholds[name].errors, found.errors, name)
        expected = transform_at(centre, half_width, found.threshold)
        for letter in "qkv":
            transform = variant.transforms[f"{name[:-1]}{letter}"]
            assert_same(transform.shift, expected.shift, "shift")
            assert_same(transform.scale, expected.scale, "scale")


@pytest.mark.parametrize("steps", ["all", "first"])
def test_centres_are_those_of_the_steps_asked_for(model, statistics, steps):
    channels = ShiftAndScale(sites=("*",), scale=False, steps=steps)
    variant = quantize(model, Recipe("x", None, ActivationFormat(8), channels=channels), statistics)
    for site in model.sites:
        low, high = statistics.low[site.name], statistics.high[site.name]
        if steps == "first":
            low, high = low[:1], high[:1]
        assert_same(variant.transforms[site.name].shift, (low.amin(0) + high.amax(0)) / 2, site.name)


def test_the_method_of_the_time_path_comes_before_that_of_channels(model, statistics):
    """A logarithmic grid is centred on zero, and a table has no channels to move."""
    for temporal in (HTDQ(coefficient=2.0), TemporalBlock(), Tabulated()):
        recipe = Recipe("x", None, ActivationFormat(8), temporal=temporal, channels=ChannelBalancing())
        variant = quantize(model, recipe, statistics)
        assert variant.transforms.keys() == {site.name for site in model.sites if site.role not in TIME_PATH}


def test_frames_seen_one_by_one_have_grids_of_their_own(model, statistics):
    variant = quantize(model, Recipe("x", None, ActivationFormat(8, "static_per_frame")), statistics)
    for site in model.sites:
        quantizer = own_quantizer(layer_of(variant, site.name))
        assert isinstance(quantizer, StaticPerFrame if site.sees_frames else StaticPerTensor), site.name
        if site.sees_frames:
            low, high = statistics.frame_low[site.name].amin(0), statistics.frame_high[site.name].amax(0)
            assert_same(quantizer.scale, make_grid(low, high, 8, False).scale, site.name)
    assert {site.role for site in model.sites if site.sees_frames} == {
        "first_layer",
        "last_layer",
        "residual_convolution",
        "shortcut_convolution",
        "resampling_convolution",
        "spatial_projection",
        "spatial_attention",
        "spatial_attention_output",
        "text_attention",
        "text_attention_output",
        "spatial_feed_forward",
    }


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_grids_by_frame_refuse_clips_of_another_length(model, statistics, frames):
    """Also those whose frames, doubled by guidance, happen to fill the grids: they would be the wrong ones."""
    variant = quantize(model, get_recipe("qvd-base-w8a8"), statistics)
    with pytest.raises(GenerationError, match="4 frames"):
        generate(variant, default_settings(model, PROMPT, frames=frames))


def test_timesteps_that_depend_on_the_clip_are_refused(ltx):
    recipe = Recipe("x", None, ActivationFormat(16, "static_per_step"))
    statistics = calibrate(ltx, [PROMPT])
    with pytest.raises(CalibrationError, match=r"depend on more than their number .*mu.* choose a recipe"):
        quantize(ltx, recipe, statistics)


@pytest.mark.parametrize("family", ["model", "wan"])
def test_ranges_of_every_step_in_any_family(request, family):
    model = request.getfixturevalue(family)
    settings = default_settings(model, PROMPT, seed=1000)
    recipe = Recipe("x", None, ActivationFormat(16, "static_per_step"))
    variant = quantize(model, recipe, calibrate(model, [PROMPT]))
    assert error_of(generate(variant, settings), generate(model, settings)) < 1e-3


@pytest.mark.parametrize("channels", [ShiftAndScale(), ChannelBalancing()], ids=["shift-and-scale", "balancing"])
def test_channels_need_statistics_whatever_the_inputs(model, channels):
    recipe = Recipe("x", WeightFormat(8), ActivationFormat(8, "dynamic_per_token"), channels=channels)
    with pytest.raises(CalibrationError, match=r"x relies on calibrated ranges: pass statistics=calibrate\(model"):
        quantize(model, recipe)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "dynamic"])
def test_named_recipes_without_statistics(model, method):
    with pytest.raises(CalibrationError, match=f"{method}-w8a8 relies on calibrated ranges"):
        quantize(model, get_recipe(f"{method}-w8a8"))


@methods
def test_named_recipes_with_statistics_of_another_model(model, statistics, method):
    foreign = replace(statistics, run=replace(statistics.run, fingerprint="0" * 16))
    with pytest.raises(CalibrationError, match=f"{'0' * 16}.*{model.fingerprint}.*calibrate again"):
        quantize(model, get_recipe(f"{method}-w8a8"), foreign)


@pytest.mark.parametrize("sites", [("nowhere",), ("temporal_attention", "up_blocks.9.*")], ids=str)
@pytest.mark.parametrize("method", [ShiftAndScale, ChannelBalancing])
def test_channels_of_sites_that_do_not_exist(model, statistics, sites, method):
    recipe = Recipe("x", WeightFormat(8), ActivationFormat(8), channels=method(sites=sites))
    with pytest.raises(RecipeError) as caught:
        quantize(model, recipe, statistics)
    assert repr(sites[-1]) in str(caught.value)
    assert all(site.role in str(caught.value) for site in model.sites)


@pytest.mark.parametrize("method", ["qvd", "qvd-scri", "os-plus", "smoothquant"])
def test_statistics_that_miss_a_site_of_a_transformed_input(model, statistics, method):
    name = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    partial = replace(statistics, low={k: v for k, v in statistics.low.items() if k != name})
    with pytest.raises(CalibrationError, match=f"say nothing about {name}"):
        quantize(model, get_recipe(f"{method}-w8a8"), partial)
