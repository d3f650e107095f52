"""Integer variants against the simulated ones they come from: layer by layer, and whole clips."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from diffusers import PNDMScheduler

from qvd_core.benchmarks.inference import weight_bytes
from qvd_core.engines import cpu_int8
from qvd_core.engines.integer import in_integers
from qvd_core.formats import ActivationFormat, ShiftAndScale, WeightFormat
from qvd_core.models.loader import VideoModel, load
from qvd_core.recipe import METHODS, Recipe, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import Variant, quantize
from tests.closeness import assert_same, assert_same_clip
from tests.denoiser_calls import recorded_calls
from tests.engines.conversions import assert_layers_equal, assert_placed, layers_at_work
from tests.variants import PROMPT, difference, error_of, layer_of

pytestmark = pytest.mark.skipif(cpu_int8.unavailable() is not None, reason=f"{cpu_int8.unavailable()}")

DYNAMIC = ActivationFormat(8, "dynamic_per_token")
PER_STEP = Recipe("x", WeightFormat(8), ActivationFormat(8, "static_per_step"))


@pytest.fixture(scope="module")
def integer(named):
    return functools.cache(lambda name: in_integers(named(name)))


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("method", METHODS)
def test_every_layer_of_every_method_is_that_of_simulation(named, call, method, bits):
    variant = named(f"{method}-{bits}")
    converted = in_integers(variant)
    assert converted.engine == "int8"
    assert_placed(converted)
    assert_layers_equal(converted, layers_at_work(variant, call))


@pytest.mark.parametrize(
    "recipe",
    [
        replace(get_recipe("q-diffusion-w4a4"), activations=DYNAMIC, channels=ShiftAndScale(sites=("*",))),
        replace(get_recipe("os-plus-w8a8"), split_shortcuts=True),
        Recipe("x", WeightFormat(8, False), ActivationFormat(8, "static_per_frame", symmetric=True)),
        Recipe("x", WeightFormat(2), ActivationFormat(3, "dynamic_per_token", symmetric=True)),
    ],
    ids=["split-dynamic-moved", "split-moved", "per-frame-symmetric", "fewest-bits"],
)
def test_every_layer_of_other_recipes_is_that_of_simulation(model, statistics, call, recipe):
    variant = quantize(model, recipe, statistics)
    converted = in_integers(variant)
    assert_placed(converted)
    assert_layers_equal(converted, layers_at_work(variant, call))


@pytest.mark.parametrize("name", ["qvd-w8a8", "q-diffusion-w4a4"])
def test_every_layer_of_the_embedded_model_is_that_of_simulation(mini, mini_statistics, name):
    variant = quantize(mini, get_recipe(name), mini_statistics)
    converted = in_integers(variant)
    assert_placed(converted)
    first = recorded_calls(mini, PROMPT, steps=2, frames=4, height=32, width=32)[0]
    assert_layers_equal(converted, layers_at_work(variant, first))


@pytest.mark.parametrize("family", ["wan", "ltx"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_every_layer_of_other_families_is_that_of_simulation(request, family, symmetric):
    """Their roles are generic, and nothing is tabulated."""
    model = request.getfixturevalue(family)
    variant = quantize(model, Recipe("x", WeightFormat(8, symmetric), replace(DYNAMIC, symmetric=symmetric)))
    converted = in_integers(variant)
    assert {placement.engine for placement in converted.placements.values()} == {"int8"}
    assert_layers_equal(converted, layers_at_work(variant, recorded_calls(model, PROMPT)[0]))


def test_layers_that_are_not_in_int8_say_why(model, statistics):
    recipe = (
        Recipe("x", WeightFormat(8), ActivationFormat(8))
        .override("spatial_attention", None, 8)
        .override("text_attention", 8, None)
        .override("first_layer", 8, 9)
        .override("temporal_projection", 4, 16, range="dynamic_per_token")
        .override("last_layer", None, None)
        .override("time_embedding", None, None)
    )
    variant = quantize(model, recipe, statistics)
    converted = in_integers(variant)
    assert_placed(converted)
    reasons = {site.role: converted.placements[site.name].reason for site in model.sites}
    assert reasons["spatial_attention"] == "its weights are in floating point"
    assert reasons["text_attention"] == "its input is in floating point"
    assert reasons["first_layer"] == "its input has 9 bits, more than int8 holds"
    assert reasons["temporal_projection"] == "its input has 16 bits, more than int8 holds"
    assert reasons["last_layer"] == reasons["time_embedding"] == "the recipe leaves it as it is"


@pytest.mark.parametrize("name", ["qvd-htdq-w8a8", "minmax-w8a8"])
def test_a_time_path_that_cannot_be_tabulated_stays_where_it_is(tiny_folder, model, name):
    """This sampler visits a timestep twice, so a step is not known by its timestep."""
    pipeline = load(str(tiny_folder), device="cpu").pipeline
    pipeline.register_modules(scheduler=PNDMScheduler.from_config(pipeline.scheduler.config))
    own = VideoModel(replace(model.spec, steps=4), pipeline, model.denoiser_name, model.device)
    recipe = replace(get_recipe(name), name="x", activations=DYNAMIC, overrides=())
    converted = in_integers(quantize(own, recipe))
    assert_placed(converted, tables=False)


@pytest.mark.parametrize("name", ["minmax-w8a8", "qvd-w4a8"])
def test_clips_are_as_close_as_rounding_lets_them_be(mini, mini_statistics, name):
    """As close to the simulated clip as that is to full precision, and no further from full precision.

    They cannot be much closer: both add up in another order, so now and then a value that lies almost halfway between
    two codes gets the one here and the other there. That is an error of one step of the grid, as large as
    quantization itself makes, and it spreads through all layers and steps that follow.
    """
    settings = default_settings(mini, PROMPT, steps=2, frames=4, height=32, width=32)
    exact = generate(mini, settings)
    variant = quantize(mini, get_recipe(name), mini_statistics)
    simulated, converted = generate(variant, settings), generate(in_integers(variant), settings)
    quantization = error_of(simulated, exact)
    assert error_of(converted, simulated) < quantization
    assert error_of(converted, exact) < 1.25 * quantization


@pytest.mark.parametrize("name", ["tfmq-dm-w4a4", "qvd-w8a8"])
def test_the_simulated_variant_and_the_model_stay_as_they_were(model, statistics, settings, reference, name):
    variant = quantize(model, get_recipe(name), statistics)
    before = {key: value.clone() for key, value in variant.denoiser.state_dict().items()}
    clip, hooks = generate(variant, settings), hooks_of(variant)
    generate(in_integers(variant), settings)
    after = variant.denoiser.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert_same(after[key], value, key)
    assert hooks_of(variant) == hooks
    assert variant.engine == "simulate"
    assert not variant.placements
    assert_same_clip(generate(variant, settings), clip)
    assert_same_clip(generate(model, settings), reference)


def hooks_of(variant: Variant) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in variant.denoiser.modules()]


@pytest.mark.parametrize("name", ["tfmq-dm-w4a4", "qvd-w8a8"])
def test_conversion_does_not_run_layers_others_may_be_sampling_with(model, statistics, name):
    variant = quantize(model, get_recipe(name), statistics)
    own, ran = {id(module) for module in variant.denoiser.modules()}, []
    for module in variant.denoiser.modules():
        module.register_forward_hook(lambda layer, args, output: ran.append(id(layer)))
    in_integers(variant)
    assert ran
    assert not own.intersection(ran)


@pytest.mark.parametrize("name", ["minmax-w8a8", "qvd-w8a8"])
def test_both_halves_of_guidance_are_computed_as_if_alone(model, named, integer, name):
    """Up to what ties do, see above; grids of frames must meet the same frames in both halves."""
    arguments = []
    denoiser = integer(name).denoiser
    hook = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: arguments.append((args, kwargs)), with_kwargs=True
    )
    recorded_calls(model, PROMPT)[0](denoiser)
    hook.remove()
    (sample, timestep), kwargs = arguments[0]
    with torch.inference_mode():
        together = denoiser(sample, timestep, **kwargs)[0]
        text = kwargs.pop("encoder_hidden_states")
        alone = [
            denoiser(half, timestep, encoder_hidden_states=words, **kwargs)[0]
            for half, words in zip(sample.chunk(2), text.chunk(2), strict=True)
        ]
    assert len(sample) == 2
    quantization = difference(together, recorded_calls(model, PROMPT)[0](model.denoiser))
    assert difference(torch.cat(alone), together) < quantization


def test_ranges_of_every_step_in_every_layer(model, statistics):
    variant = quantize(model, PER_STEP, statistics)
    converted = in_integers(variant)
    assert converted.clock is not variant.clock
    for call in recorded_calls(model, PROMPT):
        expected = layers_at_work(variant, call)
        layers_at_work(converted, call, [])  # tells it the step
        assert_layers_equal(converted, expected)


@pytest.mark.parametrize("name", ["qvd-w4a8", "q-diffusion-w4a4", "minmax-w8a8", "os-plus-w8a8"])
def test_packed_weights_give_the_same_clip_bit_for_bit(named, integer, settings, name):
    packed = in_integers(named(name), packed=True)
    assert_placed(packed)
    assert_same_clip(generate(packed, settings), generate(integer(name), settings))


@pytest.mark.parametrize(("name", "smaller"), [("minmax-w4a8", 1.8), ("minmax-w8a8", 0.9)])
def test_packed_weights_are_all_the_weights_there_are(mini, mini_statistics, name, smaller):
    """Half a byte each, or one as unpacked ones; and nothing dequantized beside them."""
    variant = quantize(mini, get_recipe(name), mini_statistics)
    settings = default_settings(mini, PROMPT, steps=1, frames=2, height=32, width=32)
    packed, unpacked = in_integers(variant, packed=True), in_integers(variant)
    before = weight_bytes(packed.denoiser)
    assert weight_bytes(unpacked.denoiser) > smaller * before
    generate(packed, settings)
    assert weight_bytes(packed.denoiser) == before
    assert "weight" in layer_of(variant, packed_site(packed))._buffers  # the simulated one keeps its own ready


def packed_site(variant: Variant) -> str:
    return next(name for name, placement in variant.placements.items() if placement.engine == "int8")
