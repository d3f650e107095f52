"""Variants live beside their model: they share what they do not quantize and change nothing of it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from qvd_core.errors import CalibrationError, RecipeError
from qvd_core.formats import ActivationFormat, Override, WeightFormat
from qvd_core.layers.inputs import DynamicPerToken, OncePerInput, StaticPerTensor
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.recipe import METHODS, Recipe, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import quantize, share_structure
from tests.closeness import assert_same_clip, differs

DYNAMIC = ActivationFormat(8, "dynamic_per_token")
FLOAT = Recipe("float", None, None)


def tensors(module):
    return {name: t for name, t in (*module.named_parameters(), *module.named_buffers()) if t is not None}


def own_quantizer(layer):
    """That of a layer's input, whether or not other layers share it."""
    quantizer = layer.quantize_input
    return quantizer.quantizer if isinstance(quantizer, OncePerInput) else quantizer


def test_unquantized_tensors_are_shared_and_others_are_not(model, statistics):
    recipe = get_recipe("minmax-w4a8").override("temporal_attention", None, None)
    variant = quantize(model, recipe, statistics)
    own = tensors(variant.denoiser)
    quantized = {f"{s.name}.weight" for s in model.sites if recipe.formats(s.name, s.role)[0] is not None}
    assert 0 < len(quantized) < len(model.sites)
    for name, original in tensors(model.denoiser).items():
        shared = own[name].data_ptr() == original.data_ptr()
        assert shared != (name in quantized), f"{name} is {'shared' if shared else 'a copy'}"


def test_the_model_is_bit_for_bit_what_it_was(model, settings, reference, statistics):
    before = {name: t.clone() for name, t in tensors(model.denoiser).items()}
    types = [type(module) for module in model.denoiser.modules()]
    for method in METHODS:
        assert differs(generate(quantize(model, get_recipe(f"{method}-w6a6"), statistics), settings), reference)
    assert [type(module) for module in model.denoiser.modules()] == types
    assert all(torch.equal(t, before[name]) for name, t in tensors(model.denoiser).items())
    assert_same_clip(generate(model, settings), reference)


def test_variants_side_by_side_do_not_influence_each_other(model, settings, statistics):
    alone = [generate(quantize(model, get_recipe(n), statistics), settings) for n in ("minmax-w4a4", "dynamic-w8a8")]
    first = quantize(model, get_recipe("minmax-w4a4"), statistics)
    second = quantize(model, get_recipe("dynamic-w8a8"), statistics)
    assert_same_clip(generate(first, settings), alone[0])
    assert_same_clip(generate(second, settings), alone[1])
    assert_same_clip(generate(first, settings), alone[0])
    assert differs(*alone)


@pytest.mark.parametrize(
    "recipe",
    [
        FLOAT,
        Recipe("exempt", WeightFormat(2), ActivationFormat(3), (Override("*", None, None),)),
        FLOAT.override("temporal_attention", 2, 3).override("*.attn1.*", 2, None).override("*", None, None),
    ],
    ids=["nothing-asked", "static-exempted", "overrides-undone"],
)
def test_exempting_everything_is_the_model_itself(model, settings, reference, statistics, recipe):
    variant = quantize(model, recipe, statistics)
    assert not any(isinstance(module, QuantizedLayer) for module in variant.denoiser.modules())
    assert_same_clip(generate(variant, settings), reference)


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ("temporal_attention", "temporal_attention"),
        ("conv_in", "first_layer"),
        ("*.time_emb_proj", "temporal_features"),
    ],
    ids=["role", "path", "pattern"],
)
def test_one_override_touches_just_its_sites(model, settings, reference, sites, expected):
    variant = quantize(model, FLOAT.override(sites, 2, None))
    changed = {n for n, module in variant.denoiser.named_modules() if isinstance(module, QuantizedLayer)}
    assert changed == {site.name for site in model.sites if site.role == expected}
    assert differs(generate(variant, settings), reference)


@pytest.mark.parametrize(
    ("weights", "activations", "quantizer"),
    [
        (WeightFormat(4), None, type(None)),
        (None, ActivationFormat(4), StaticPerTensor),
        (None, DYNAMIC, DynamicPerToken),
        (WeightFormat(3, symmetric=False), ActivationFormat(5, symmetric=True), StaticPerTensor),
    ],
    ids=["weights-only", "static-inputs-only", "dynamic-inputs-only", "both"],
)
def test_weights_and_inputs_are_independent(model, settings, reference, statistics, weights, activations, quantizer):
    variant = quantize(model, Recipe("x", weights, activations), statistics)
    layers = [module for module in variant.denoiser.modules() if isinstance(module, QuantizedLayer)]
    assert len(layers) == len(model.sites)
    assert {type(own_quantizer(layer)) for layer in layers} == {quantizer}
    assert {layer.codes is None for layer in layers} == {weights is None}
    assert differs(generate(variant, settings), reference)


def test_static_grids_are_the_calibrated_ranges(model, statistics):
    variant = quantize(model, get_recipe("minmax-w8a8"), statistics)
    for site in model.sites:
        grid = own_quantizer(variant.denoiser.get_submodule(site.name))
        low = statistics.low[site.name].min().clamp(max=0)
        high = statistics.high[site.name].max().clamp(min=0)
        assert float(grid.scale) == pytest.approx(float(high - low) / 255, rel=1e-6)


@pytest.mark.parametrize("sites", ["temporal", "up_blocks.7.*", "attn1.to_q", "linear"])
def test_an_override_without_a_match_lists_the_roles(model, sites):
    with pytest.raises(RecipeError) as caught:
        quantize(model, FLOAT.override(sites, 8, None))
    assert repr(sites) in str(caught.value)
    assert all(site.role in str(caught.value) for site in model.sites)


def test_static_inputs_without_statistics(model):
    with pytest.raises(CalibrationError, match=r"minmax-w8a8 relies on calibrated ranges.*calibrate\(model"):
        quantize(model, get_recipe("minmax-w8a8"))


def test_statistics_of_another_model(model, statistics):
    foreign = replace(statistics, run=replace(statistics.run, model="elsewhere", fingerprint="0" * 16))
    with pytest.raises(CalibrationError) as caught:
        quantize(model, get_recipe("minmax-w8a8"), foreign)
    message = str(caught.value)
    assert all(part in message for part in ("elsewhere", "0" * 16, model.spec.name, model.fingerprint))


def test_statistics_that_miss_a_site(model, statistics):
    partial = replace(statistics, low={k: v for k, v in statistics.low.items() if k != "conv_in"})
    with pytest.raises(CalibrationError, match="say nothing about conv_in"):
        quantize(model, get_recipe("minmax-w8a8"), partial)
    quantize(model, get_recipe("minmax-w8a8").override("conv_in", 8, None), partial)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_recipe_gives_the_same_variant(model, statistics, method):
    first = quantize(model, get_recipe(f"{method}-w4a8"), statistics).denoiser.state_dict()
    second = quantize(model, get_recipe(f"{method}-w4a8"), statistics).denoiser.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_dropped_variant_frees_its_codes(model, statistics):
    variant = quantize(model, get_recipe("minmax-w8a8"), statistics)
    codes = weakref.ref(variant.denoiser.conv_in.packed)
    generate(variant, default_settings(model, "a red circle", steps=1, frames=1))
    del variant
    gc.collect()
    assert codes() is None


def test_shared_structure_has_its_own_modules_and_hooks(model):
    copy = share_structure(model.denoiser)
    assert not {id(m) for m in copy.modules()} & {id(m) for m in model.denoiser.modules()}
    copy.conv_in.register_forward_hook(lambda *_: None)
    assert not model.denoiser.conv_in._forward_hooks


@pytest.mark.parametrize("name", ["dynamic-w8a8", "minmax-w4a8"])
def test_a_family_without_a_site_map_quantizes_too(wan, name):
    from qvd_core.calibration.calibrate import calibrate

    recipe = get_recipe(name).override("first_layer", 8, None)
    settings = default_settings(wan, "a red circle")
    reference = generate(wan, settings)
    statistics = calibrate(wan, ["a red circle"]) if recipe.needs_statistics else None
    variant = quantize(wan, recipe, statistics)
    clip = generate(variant, settings)
    assert clip.frames.shape == reference.frames.shape == (5, 16, 16, 3)
    assert differs(clip, reference)
    assert_same_clip(generate(wan, settings), reference)


def test_a_bf16_model_without_a_site_map_quantizes_too(wan_folder):
    """What `load` makes of a large model on CUDA, here on the CPU."""
    from qvd_core.models.loader import load

    model = load(str(wan_folder), device="cpu")
    model.pipeline.to(torch.bfloat16)
    settings = default_settings(model, "a red circle", steps=1, frames=1, height=16, width=16)
    assert differs(generate(quantize(model, get_recipe("dynamic-w8a8")), settings), generate(model, settings))
