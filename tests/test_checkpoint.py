"""Checkpoints on top of their model: the same variant again, whatever the recipe, as small as it should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qvd_core.checkpoint import load_quantized, save
from qvd_core.checkpoint_file import CONFIG, WEIGHTS
from qvd_core.errors import ModelError
from qvd_core.formats import ActivationFormat, Override, WeightFormat
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.layers.structure import stored_tensors
from qvd_core.models.loader import VideoModel
from qvd_core.quantizers.packing import packed_size
from qvd_core.recipe import METHODS, RECIPES, Recipe, get_recipe
from qvd_core.sampling import generate
from qvd_core.site_error import site_errors
from qvd_core.variant import quantize
from tests.closeness import assert_same, assert_same_clip
from tests.denoiser_calls import recorded_calls
from tests.full_size import checkpoint_bytes, narrow_model


def assert_same_state(actual, expected) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert list(actual) == list(expected)
    assert all(t.dtype == expected[name].dtype and torch.equal(t, expected[name]) for name, t in actual.items())


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_comes_back(model, named, tmp_path, name):
    variant = named(name)
    save(variant, tmp_path / "x")
    again = load_quantized(tmp_path / "x", model)
    assert_same_state(again.denoiser, variant.denoiser)
    assert (again.model, again.recipe, again.engine) == (model, variant.recipe, variant.engine)
    assert (again.frames, again.folded, again.calibration) == (variant.frames, variant.folded, variant.calibration)
    assert again.transforms.keys() == variant.transforms.keys()
    for site, transform in variant.transforms.items():
        assert_same(again.transforms[site].shift, transform.shift, site)
        assert_same(again.transforms[site].scale, transform.scale, site)
    assert (again.clock is None) is (variant.clock is None)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {CONFIG, WEIGHTS}


@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_those_of_the_saved_variant(model, named, call, tmp_path, method):
    variant = named(f"{method}-w4a6")
    save(variant, tmp_path)
    assert_same(call(load_quantized(tmp_path, model).denoiser), call(variant.denoiser))


@pytest.mark.parametrize("name", ["qvd-w4a8", "tfmq-dm-w6a6", "dynamic-w4a4"])
def test_clips_too(model, named, settings, tmp_path, name):
    save(named(name), tmp_path)
    assert_same_clip(generate(load_quantized(tmp_path, model), settings), generate(named(name), settings))


@pytest.mark.parametrize("name", ["qvd-w4a8", "q-diffusion-w6a6", "smoothquant-w8a8", "tabulated-w4a4"])
def test_the_embedded_model(mini, mini_statistics, tmp_path, name):
    variant = quantize(mini, get_recipe(name), mini_statistics)
    save(variant, tmp_path)
    again = load_quantized(tmp_path, mini)
    call = recorded_calls(mini, "a red circle", steps=2, frames=4, height=32, width=32)[1]
    assert_same(call(again.denoiser), call(variant.denoiser))


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_families_without_a_site_map(request, family, tmp_path):
    model = request.getfixturevalue(family)
    variant = quantize(model, get_recipe("dynamic-w4a8"))
    save(variant, tmp_path)
    again = load_quantized(tmp_path, model)
    assert_same_state(again.denoiser, variant.denoiser)
    call = recorded_calls(model, "a red circle")[0]
    assert_same(call(again.denoiser), call(variant.denoiser))


def test_a_recipe_of_ones_own(model, statistics, call, tmp_path):
    """Inputs or weights alone, whole layers left out, 16 bits, symmetric inputs."""
    recipe = Recipe(
        "mine",
        WeightFormat(3),
        ActivationFormat(16, symmetric=True),
        (Override("temporal_attention", None, 5), Override("conv_in", None, None), Override("text_attention", 7, None)),
    )
    variant = quantize(model, recipe, statistics)
    save(variant, tmp_path)
    again = load_quantized(tmp_path, model)
    assert again.recipe == recipe
    assert_same(call(again.denoiser), call(variant.denoiser))


def test_a_model_in_another_precision_computes_in_its_own(model, named, tmp_path):
    save(named("minmax-w8a8"), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["quantization_config"]["dtype"] == "float32"
    again = load_quantized(tmp_path, model).denoiser.to(torch.bfloat16)
    assert again.conv_in.weight.dtype == torch.bfloat16
    assert_same(again.conv_in.scales, named("minmax-w8a8").denoiser.conv_in.scales)


def test_analyses_work_on_what_was_loaded(model, named, settings, tmp_path):
    """They need transformations that the norms have taken in."""
    save(named("qvd-w4a8"), tmp_path)
    found, expected = (site_errors(v, settings) for v in (load_quantized(tmp_path, model), named("qvd-w4a8")))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[site], expected[site]) for site in found)


def test_the_model_is_left_alone(model, named, settings, reference, tmp_path):
    config = dict(model.denoiser.config)
    save(named("qvd-w4a8"), tmp_path)
    generate(load_quantized(tmp_path, model), settings)
    assert_same_clip(generate(model, settings), reference)
    assert dict(model.denoiser.config) == config


def test_codes_are_stored_without_gaps_and_scales_in_fp32(model, named, tmp_path):
    save(named("q-diffusion-w6a6"), tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:  # the format's own reader
        names = set(file.keys())
        for site in model.sites:
            layer = named("q-diffusion-w6a6").denoiser.get_submodule(site.name)
            packed = file.get_tensor(f"{site.name}.packed")
            assert packed.dtype == torch.uint8
            assert packed.numel() == packed_size(layer.codes.numel(), layer.weights.bits)
            assert file.get_tensor(f"{site.name}.scales").dtype == torch.float32
            assert file.get_tensor(f"{site.name}.zero_points").dtype == torch.int8
    assert names == set(stored_tensors(named("q-diffusion-w6a6").denoiser))
    assert not any(name.endswith(".weight") and "norm" not in name for name in names)


def test_the_config_says_where_it_comes_from(model, named, statistics, tmp_path):
    save(named("tfmq-dm-w8a8"), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["_class_name"] == "UNetMotionModel"
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "qvd"
    assert Recipe.from_dict(quantization["recipe"]) == get_recipe("tfmq-dm-w8a8")
    provenance = quantization["provenance"]
    assert (provenance["model"], provenance["fingerprint"]) == (model.spec.name, model.fingerprint)
    assert provenance["calibration"]["prompts"] == list(statistics.run.prompts)
    assert len(quantization["structure"]["timesteps"]) == statistics.run.steps
    assert str(Path.home()) not in (tmp_path / CONFIG).read_text()
    assert "_name_or_path" not in config


def test_the_same_variant_makes_the_same_bytes(model, named, tmp_path):
    save(named("qvd-w4a8"), tmp_path / "a")
    save(load_quantized(tmp_path / "a", model), tmp_path / "b")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_packed_layers_are_saved_too(model, named, tmp_path):
    variant = quantize(model, get_recipe("dynamic-w4a4"))
    save(variant, tmp_path / "a")
    for module in variant.denoiser.modules():
        if isinstance(module, QuantizedLayer):
            module.keep_packed()
    save(variant, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


# Sizes


@pytest.fixture(scope="module")
def narrow(model):
    from qvd_core.calibration.calibrate import calibrate

    made = narrow_model(model)
    return made, calibrate(made, ["a red circle"], steps=2, frames=16, height=16, width=16)


@pytest.mark.parametrize(
    ("name", "least"), [("minmax-w8a8", 1.98), ("minmax-w4a8", 3.9), ("qvd-w8a8", 1.98), ("qvd-w4a8", 3.9)]
)
def test_animatediff_at_full_size_shrinks_as_it_should(narrow, name, least):
    """Exactly, from shapes: both files against the weights in bf16."""
    model, statistics = narrow
    variant = quantize(model, get_recipe(name), statistics)
    for dtype in (torch.bfloat16, torch.float32):  # of what stays in floating point
        after, before = checkpoint_bytes(variant, dtype)
        assert 1.31e9 < before / 2 < 1.32e9
        assert before / after >= least, dtype


def test_sizes_from_shapes_are_those_on_disk(narrow, tmp_path):
    model, statistics = narrow
    variant = quantize(model, get_recipe("qvd-w4a8"), statistics)
    save(variant, tmp_path)
    predicted = checkpoint_bytes(variant, torch.float32, model.denoiser)[0]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == pytest.approx(predicted, rel=0.01)


# What is no checkpoint of this model


def test_another_model_of_the_same_shape(model, named, tmp_path):
    save(named("minmax-w8a8"), tmp_path)
    other = VideoModel(model.spec, model.pipeline, model.denoiser_name, model.device)
    other.__dict__["fingerprint"] = "f" * 16
    with pytest.raises(ModelError, match=f"made of {model.spec.name} .{model.fingerprint}.* in float32, not of .*ffff"):
        load_quantized(tmp_path, other)


def test_another_architecture(model, mini, wan, named, tmp_path):
    save(named("minmax-w8a8"), tmp_path)
    with pytest.raises(ModelError, match=f"was made of {model.spec.name}, not of animatediff-mini: its "):
        load_quantized(tmp_path, mini)
    with pytest.raises(ModelError, match=r"is a UNetMotionModel, made of .* has a WanTransformer3DModel"):
        load_quantized(tmp_path, wan)


@pytest.mark.parametrize("part", ["unet", "."], ids=["denoiser", "pipeline"])
def test_a_folder_of_something_else(model, tiny_folder, part):
    with pytest.raises(ModelError, match=r"is no checkpoint"):
        load_quantized(tiny_folder / part, model)


def test_a_folder_that_is_not_there(model, tmp_path):
    with pytest.raises(ModelError, match="There is no folder"):
        load_quantized(tmp_path / "none", model)


def test_a_name_changes_nothing(model, named, tmp_path):
    """The model's name is for people; its fingerprint decides."""
    save(named("minmax-w8a8"), tmp_path)
    renamed = VideoModel(replace(model.spec, name="other"), model.pipeline, model.denoiser_name, model.device)
    load_quantized(str(tmp_path), renamed)
