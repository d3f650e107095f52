"""Every named recipe on a model: what each method does to which layers, and what it must not do."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler, PNDMScheduler, UNetMotionModel

from qvd_core.calibration.calibrate import calibrate
from qvd_core.calibration.temporal_features import temporal_features
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
    DynamicPerToken,
    Logarithmic,
    OncePerInput,
    StaticPerFrame,
    StaticPerStep,
    StaticPerTensor,
    StaticSplit,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.methods.htdq import search_coefficient
from qvd_core.methods.scri import centre_and_half_width, search_threshold, transform_at
from qvd_core.models.loader import VideoModel, load
from qvd_core.models.sites import shortcut_split
from qvd_core.quantizers.uniform import fake_quantize, make_grid
from qvd_core.recipe import METHODS, RECIPES, TIME_PATH, Recipe, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import quantize, share_structure
from tests.closeness import assert_close, assert_same
from tests.denoiser_calls import recorded_calls

PROMPT = "a red circle"
methods = pytest.mark.parametrize("method", METHODS)


def layer_of(variant, name):
    return variant.denoiser.get_submodule(name)


def own_quantizer(layer):
    """That of a layer's input, whether or not other layers share it."""
    quantizer = layer.quantize_input
    return quantizer.quantizer if isinstance(quantizer, OncePerInput) else quantizer


def error_of(clip, reference) -> float:
    """Of the final latents, relative to their size."""
    mine, exact = clip.latents_by_step[-1], reference.latents_by_step[-1]
    return float((mine - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def named(model, statistics):
    """Builds a named recipe's variant once; not to be changed."""
    return functools.cache(lambda name: quantize(model, get_recipe(name), statistics))


@pytest.fixture(scope="module")
def call(model):
    """The first call of a sampling run, to be made of any denoiser."""
    return recorded_calls(model, PROMPT)[0]


def difference(actual, expected) -> float:
    return float((actual - expected).norm() / expected.norm())


# All of them


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


# The time path


def temporal_sites(model):
    return [site for site in model.sites if site.role == "temporal_features"]


@pytest.mark.parametrize("name", ["qvd-htdq-w8a8", "qvd-w4a6"])
def test_htdq_puts_temporal_features_on_the_searched_grid(model, statistics, name):
    recipe = get_recipe(name)
    variant = quantize(model, recipe, statistics)
    features = temporal_features(model, statistics.run.steps).values
    found = search_coefficient(features, recipe.activations.bits)
    assert list(variant.coefficients) == [recipe.activations.bits]
    for site in model.sites:
        quantizer = own_quantizer(layer_of(variant, site.name))
        assert isinstance(quantizer, Logarithmic) is (site.role == "temporal_features"), site.name
        if isinstance(quantizer, Logarithmic):
            assert float(quantizer.grid.coefficient) == pytest.approx(found.coefficient, rel=1e-6)
            assert quantizer.grid.absmax == features.abs().max()
            assert quantizer.grid.levels == 2 ** (recipe.activations.bits - 1) - 1
            assert_close(quantizer(features), variant_features(found, features, recipe), 1e-6, site.name)


def variant_features(found, features, recipe):
    """The features on the grid of the search's best coefficient, by the formula, 2^(-q / alpha) of the largest."""
    largest, count = float(features.abs().max()), 2 ** (recipe.activations.bits - 1) - 1
    r = torch.round(-found.coefficient * torch.log2(features.double().abs() / largest)).clamp(min=0)
    return torch.where(r < count, features.sign() * largest * torch.exp2(-r / found.coefficient), 0.0)


def test_htdq_searches_once_for_each_bit_width(model, statistics):
    first, *others = (site.name for site in temporal_sites(model))
    variant = quantize(model, get_recipe("qvd-htdq-w8a8").override(first, 8, 5), statistics)
    assert sorted(variant.coefficients) == [5, 8]
    assert own_quantizer(layer_of(variant, first)).grid.levels == 2**4 - 1
    assert all(own_quantizer(layer_of(variant, name)).grid.levels == 2**7 - 1 for name in others)


@pytest.mark.parametrize(
    ("method", "levels", "coefficient"),
    [
        (HTDQ(port=True), 2**6, 1.0),
        (HTDQ(coefficient=3.5), 2**5 - 1, 3.5),
        (HTDQ(coefficient=3.5, sign_inside=False), 2**6 - 1, 3.5),
        (HTDQ(form="H2", coefficient=0.01), 2**5 - 1, 0.01),
    ],
    ids=["port", "fixed", "sign-outside", "H2"],
)
def test_htdq_without_a_search(model, statistics, method, levels, coefficient):
    variant = quantize(model, replace(get_recipe("qvd-htdq-w6a6"), temporal=method), statistics)
    assert not variant.coefficients
    for site in temporal_sites(model):
        grid = own_quantizer(layer_of(variant, site.name)).grid
        assert (grid.levels, grid.midpoint, grid.form) == (levels, method.port, method.form)
        assert float(grid.coefficient) == pytest.approx(coefficient)


@pytest.mark.parametrize("form", ["H1", "H2", "H3"])
def test_htdq_beside_dynamic_inputs_needs_no_statistics(model, settings, reference, form):
    recipe = Recipe("x", WeightFormat(8), ActivationFormat(8, "dynamic_per_token"), temporal=HTDQ(form=form))
    variant = quantize(model, recipe)
    assert list(variant.coefficients) == [8]
    assert error_of(generate(variant, settings), reference) < 0.5


def test_the_temporal_block_has_a_range_for_each_step(model, statistics):
    recipe = replace(get_recipe("tfmq-dm-w8a8"), activations=ActivationFormat(8))
    variant = quantize(model, recipe, statistics)
    for site in model.sites:
        quantizer = own_quantizer(layer_of(variant, site.name))
        assert isinstance(quantizer, StaticPerStep) is (site.role in TIME_PATH), site.name
        if site.role in TIME_PATH:
            grid = make_grid(statistics.low[site.name].amin(1), statistics.high[site.name].amax(1), 8, False)
            assert_same(quantizer.scale, grid.scale, site.name)
            assert_same(quantizer.zero_point, grid.zero_point, site.name)


def test_the_temporal_block_uses_the_range_of_the_step(model, statistics):
    """Seen from outside: what a layer of the time path receives at step i is on the grid of step i."""
    variant = quantize(model, replace(get_recipe("tfmq-dm-w4a4"), activations=ActivationFormat(4)), statistics)
    name = temporal_sites(model)[0].name
    received, given = [], []
    layer = layer_of(variant, name)
    layer.register_forward_pre_hook(lambda _, args: received.append(args[0].clone()))
    layer.quantize_input.register_forward_hook(lambda _, args, out: given.append(out.clone()))
    generate(variant, default_settings(model, PROMPT))
    assert len(received) == 2
    for step, (x, quantized) in enumerate(zip(received, given, strict=True)):
        low, high = statistics.low[name][step].min(), statistics.high[name][step].max()
        assert_same(quantized, fake_quantize(x, make_grid(low, high, 4, False)), f"step {step}")


def test_a_tabulated_time_path_is_the_unquantized_one(model):
    variant = quantize(model, Recipe("x", None, None, temporal=Tabulated()))
    settings = default_settings(model, PROMPT)
    features = temporal_features(model, settings.steps).values
    given = {site.name: [] for site in temporal_sites(model)}
    for name, outputs in given.items():
        layer = layer_of(variant, name)
        assert isinstance(layer, TabulatedLayer)
        layer.register_forward_hook(lambda _, args, out, outputs=outputs: outputs.append(out.clone()))
    clip = generate(variant, settings)
    assert error_of(clip, generate(model, settings)) < 1e-5
    for name, outputs in given.items():
        original = model.denoiser.get_submodule(name)
        expected = original(features)
        for step, output in enumerate(outputs):
            assert_same(output, expected[step].expand_as(output), f"{name} at step {step}")


@pytest.mark.parametrize("method", ["tabulated", "tfmq-dm"])
def test_methods_bound_to_their_steps_refuse_others(model, statistics, method):
    variant = quantize(model, get_recipe(f"{method}-w8a8"), statistics)
    with pytest.raises(GenerationError, match=r"2 steps .* sample with 2 steps"):
        generate(variant, default_settings(model, PROMPT, steps=3))
    generate(variant, default_settings(model, PROMPT, steps=2))


@pytest.mark.parametrize("method", ["qvd-htdq", "tabulated", "tfmq-dm"])
def test_a_model_whose_temporal_features_are_unknown(wan, method):
    statistics = calibrate(wan, [PROMPT])
    with pytest.raises(CalibrationError, match=r"tiny-wan \(WanTransformer3DModel\) has no layers known"):
        quantize(wan, get_recipe(f"{method}-w8a8"), statistics)


@pytest.fixture(scope="module")
def one_step(model):
    """Statistics of a sampler of one step, and its only call."""
    return calibrate(model, [PROMPT], steps=1), recorded_calls(model, PROMPT, steps=1)[0]


@methods
def test_a_sampler_of_one_step(model, one_step, method):
    statistics, only_call = one_step
    variant = quantize(model, get_recipe(f"{method}-w8a8"), statistics)
    assert difference(only_call(variant.denoiser), only_call(model.denoiser)) < 0.8


@pytest.mark.parametrize("scheduler", [PNDMScheduler, HeunDiscreteScheduler], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("temporal", [TemporalBlock(), Tabulated()], ids=lambda method: method.method)
def test_samplers_that_visit_a_timestep_twice(tiny_folder, model, scheduler, temporal):
    """They make more calls than they count steps, so no layer could tell which of them is meant."""
    pipeline = load(str(tiny_folder), device="cpu").pipeline
    pipeline.register_modules(scheduler=scheduler.from_config(pipeline.scheduler.config))
    own = VideoModel(model.spec, pipeline, model.denoiser_name, model.device)
    recipe = Recipe("x", None, ActivationFormat(16), temporal=temporal)
    statistics = calibrate(own, [PROMPT], steps=4)
    with pytest.raises(CalibrationError, match=f"{scheduler.__name__} visits .* timesteps in 4 steps"):
        quantize(own, recipe, statistics)


# Channels


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


# Frames and steps


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


# Split shortcuts


def shortcuts(model):
    return [site.name for site in model.sites if site.name.startswith("up_blocks") and "conv_shortcut" in site.name]


def test_a_shortcut_is_split_where_the_tensors_were_joined(model):
    assert_split_where_joined(model.denoiser)


def test_a_shortcut_of_the_embedded_model_is_split_where_the_tensors_were_joined(mini):
    assert_split_where_joined(mini.denoiser)


def test_a_shortcut_is_split_right_where_every_level_has_another_width():
    unet = UNetMotionModel(
        sample_size=8,
        block_out_channels=(4, 8, 12, 20),
        down_block_types=("DownBlockMotion",) * 4,
        up_block_types=("UpBlockMotion",) * 4,
        layers_per_block=2,
        norm_num_groups=2,
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    ).eval()
    assert_split_where_joined(unet)


def call_of(denoiser):
    """Two frames of noise at some step."""
    width = denoiser.config.cross_attention_dim
    with torch.no_grad():
        denoiser(
            torch.randn(1, denoiser.config.in_channels, 2, 8, 8),
            torch.tensor(7),
            encoder_hidden_states=torch.randn(2, 3, width),
        )


def assert_split_where_joined(denoiser) -> None:
    """The leading channels are what the layer before gave, the rest what was skipped; watched while it runs."""
    watched = share_structure(denoiser)
    before, last = {}, "mid_block"
    for block, up in enumerate(watched.up_blocks):
        for number in range(len(up.resnets)):
            name = f"up_blocks.{block}.resnets.{number}.conv_shortcut"
            before[name] = f"up_blocks.{block}.motion_modules.{number - 1}" if number else last
        last = f"up_blocks.{block}"
    joined, outputs = {}, {}
    for name, source in before.items():
        watched.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: joined.__setitem__(name, args[0].clone())
        )
        watched.get_submodule(source).register_forward_hook(
            lambda _, args, out, source=source: outputs.__setitem__(source, out.clone())
        )
    call_of(watched)
    shortcuts = [name for name, _ in denoiser.named_modules() if name.startswith("up") and "conv_shortcut" in name]
    assert sorted(before) == sorted(shortcuts)
    for name, source in before.items():
        x, split = joined[name], shortcut_split(denoiser, name)
        assert 0 < split < x.shape[1]
        assert_same(x[:, :split], outputs[source], name)


def test_only_shortcuts_of_the_way_up_are_split(model, wan):
    assert {site.name for site in model.sites if shortcut_split(model.denoiser, site.name)} == set(shortcuts(model))
    assert not any(shortcut_split(wan.denoiser, site.name) for site in wan.sites)


def test_both_halves_of_a_shortcut_are_quantized_apart(model, statistics):
    variant = quantize(model, replace(get_recipe("q-diffusion-w4a4"), activations=ActivationFormat(4)), statistics)
    for name in shortcuts(model):
        layer, split = layer_of(variant, name), shortcut_split(model.denoiser, name)
        original = model.denoiser.get_submodule(name).weight
        quantizer = own_quantizer(layer)
        assert isinstance(quantizer, StaticSplit)
        x = 3 * torch.randn(2, original.shape[1], 4, 4, generator=torch.Generator().manual_seed(0))
        for part in (slice(split), slice(split, None)):
            alone = make_grid(original[:, part].amin((1, 2, 3)), original[:, part].amax((1, 2, 3)), 4, False)
            scale, zero = alone.scale.view(-1, 1, 1, 1), alone.zero_point.view(-1, 1, 1, 1)
            weight = fake_quantize(original[:, part], replace(alone, scale=scale, zero_point=zero))
            assert_close(layer.weight[:, part], weight, 1e-6, name)
            low, high = statistics.low[name][:, part].min(), statistics.high[name][:, part].max()
            assert_same(quantizer(x)[:, part], fake_quantize(x[:, part], make_grid(low, high, 4, False)), name)
    others = {site.name for site in model.sites} - set(shortcuts(model))
    assert not any(isinstance(own_quantizer(layer_of(variant, name)), StaticSplit) for name in others)


@pytest.mark.parametrize("channels", [None, ShiftAndScale(sites=("*",))], ids=["plain", "transformed"])
@pytest.mark.parametrize("kind", ["static_per_tensor", "static_per_frame", "static_per_step", "dynamic_per_token"])
def test_split_shortcuts_beside_everything_else(model, statistics, call, kind, channels):
    activations = ActivationFormat(8, kind)
    recipe = Recipe("x", WeightFormat(8), activations, channels=channels, split_shortcuts=True)
    assert difference(call(quantize(model, recipe, statistics).denoiser), call(model.denoiser)) < 0.5


# What is refused


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


# Running


@pytest.fixture(scope="module")
def four_steps(model):
    """Statistics of a sampler of four steps, and its calls."""
    return calibrate(model, [PROMPT], steps=4), recorded_calls(model, PROMPT, steps=4)


@pytest.mark.parametrize("name", ["tfmq-dm-w4a8", "qvd-w4a8", "tabulated-w4a8"])
def test_one_variant_in_several_threads_at_different_steps(model, four_steps, name):
    """Four threads, each at a step of its own all the time."""
    statistics, calls = four_steps
    denoiser = quantize(model, get_recipe(name), statistics).denoiser
    alone = [call(denoiser) for call in calls]
    barrier = threading.Barrier(4, timeout=60)

    def repeat(call):
        results = []
        for _ in range(3):
            barrier.wait()
            results.append(call(denoiser))
        return results

    with ThreadPoolExecutor(4) as pool:
        for step, results in enumerate(pool.map(repeat, calls)):
            for result in results:
                assert_same(result, alone[step], f"step {step}")


def test_two_variants_in_two_threads(named, call):
    variants = [named(name) for name in ("tfmq-dm-w4a4", "tabulated-w8a8")]
    alone = [call(variant.denoiser) for variant in variants]
    assert not torch.equal(*alone)
    with ThreadPoolExecutor(2) as pool:
        for number, result in enumerate(pool.map(lambda i: call(variants[i % 2].denoiser), range(12))):
            assert_same(result, alone[number % 2], f"call {number}")


@pytest.mark.parametrize("name", ["minmax-w8a8", "os-plus-w8a8", "qvd-w8a8"])
def test_nothing_of_a_clip_stays_in_a_variant(model, settings, statistics, name):
    variant = quantize(model, get_recipe(name), statistics)
    quantized = []
    for module in variant.denoiser.modules():
        if isinstance(module, QuantizedLayer) and own_quantizer(module) is not None:
            own_quantizer(module).register_forward_hook(lambda _, args, out: quantized.append(weakref.ref(out)))
    generate(variant, settings)
    gc.collect()
    assert len(quantized) > 100
    assert not [ref for ref in quantized if ref() is not None]


@pytest.mark.parametrize("name", ["minmax-w8a8", "qvd-w8a8", "dynamic-w8a8"])
def test_what_several_layers_read_is_quantized_once(model, settings, statistics, name):
    """q, k and v of a self-attention read one tensor, k and v of the text another."""
    variant = quantize(model, get_recipe(name), statistics)
    calls = {}
    attention = variant.denoiser.down_blocks[0].motion_modules[0].transformer_blocks[0].attn1
    text = variant.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    for what, layer in (("self", attention.to_k), ("text", text.to_v)):
        own_quantizer(layer).register_forward_hook(
            lambda _, args, out, what=what: calls.__setitem__(what, calls.get(what, 0) + 1)
        )
    generate(variant, settings)
    assert calls == {"self": settings.steps, "text": settings.steps}


def test_layers_that_share_an_input_may_still_differ_in_bits(model, settings, statistics):
    query = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    key = query.removesuffix("q") + "k"
    variant = quantize(model, get_recipe("minmax-w8a8").override(query, 8, 4), statistics)
    assert own_quantizer(layer_of(variant, query)).code_max == 7
    assert own_quantizer(layer_of(variant, key)).code_max == 127
    generate(variant, settings)


def test_dynamic_recipes_transform_channels_too(model, settings, reference, statistics):
    for channels in (ShiftAndScale(sites=("*",)), ChannelBalancing()):
        recipe = Recipe("x", WeightFormat(8), ActivationFormat(8, "dynamic_per_token"), channels=channels)
        variant = quantize(model, recipe, statistics)
        assert {type(own_quantizer(m)) for m in variant.denoiser.modules() if isinstance(m, QuantizedLayer)} == {
            DynamicPerToken
        }
        assert error_of(generate(variant, settings), reference) < 0.3


def test_statistics_from_disk_give_the_same_variant(model, statistics, tmp_path):
    from qvd_core.calibration.statistics import Statistics

    statistics.save(tmp_path / "statistics")
    read = Statistics.load(tmp_path / "statistics")
    for method in ("minmax", "mse", "percentile", "os-plus", "qvd"):
        recipe = get_recipe(f"{method}-w4a8")
        fresh = quantize(model, recipe, statistics).denoiser.state_dict()
        again = quantize(model, recipe, read).denoiser.state_dict()
        different = [key for key in fresh if not torch.equal(fresh[key], again[key])]
        assert not different, f"{method}: {len(different)} tensors, among them {different[0]}"
