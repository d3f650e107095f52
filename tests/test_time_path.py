"""What recipes do to the time path: HTDQ, the temporal block, the table, and what binds them to a sampler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler, PNDMScheduler

from qvd_core.calibration.calibrate import calibrate
from qvd_core.calibration.temporal_features import temporal_features
from qvd_core.errors import CalibrationError, GenerationError
from qvd_core.formats import (
    HTDQ,
    ActivationFormat,
    Tabulated,
    TemporalBlock,
    WeightFormat,
)
from qvd_core.layers.inputs import (
    Logarithmic,
    StaticPerStep,
)
from qvd_core.layers.tabulated import TabulatedLayer
from qvd_core.methods.htdq import search_coefficient
from qvd_core.models.loader import VideoModel, load
from qvd_core.quantizers.uniform import fake_quantize, make_grid
from qvd_core.recipe import TIME_PATH, Recipe, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import quantize
from tests.closeness import assert_close, assert_same
from tests.denoiser_calls import recorded_calls
from tests.variants import PROMPT, difference, error_of, layer_of, methods, own_quantizer


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
