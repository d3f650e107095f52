"""Errors layer by layer: each alone, on the inputs of the full-precision model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.errors import EngineError, GenerationError
from qvd_core.formats import ActivationFormat, Override, ShiftAndScale, WeightFormat
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sampling import generate
from qvd_core.site_error import site_errors
from qvd_core.variant import quantize


@pytest.fixture(scope="module")
def inputs(model, settings):
    """What every layer receives and returns while the model samples, by site, one pair per step."""
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    handles = []
    for site in model.sites:

        def remember(layer, args, kwargs, output, name=site.name):
            x = args[0] if args else kwargs["input"]
            seen.setdefault(name, []).append((x.clone(), output.clone()))

        handles.append(model.denoiser.get_submodule(site.name).register_forward_hook(remember, with_kwargs=True))
    generate(model, settings)
    for handle in handles:
        handle.remove()
    return seen


def test_each_error_is_that_of_the_layer_on_its_true_input(model, settings, inputs):
    variant = quantize(model, get_recipe("dynamic-w4a4"))
    errors = site_errors(variant, settings)
    assert errors.keys() == inputs.keys()
    for name, pairs in inputs.items():
        layer = variant.denoiser.get_submodule(name)
        for step, (x, y) in enumerate(pairs):
            expected = (layer(x) - y).square().sum() / y.square().sum()
            assert errors[name][step] == pytest.approx(expected.item(), rel=1e-4), (name, step)


def test_an_integer_variant_is_refused(model, settings):
    integer = replace(quantize(model, get_recipe("dynamic-w8a8")), engine="int8")
    with pytest.raises(EngineError, match="those of simulation"):
        site_errors(integer, settings)


def test_the_model_is_left_without_hooks(model, settings):
    site_errors(quantize(model, get_recipe("dynamic-w8a8")), settings)
    assert not any(module._forward_hooks for module in model.denoiser.modules())


def test_layers_left_in_floating_point_have_no_entry(model, settings):
    recipe = replace(get_recipe("dynamic-w8a8"), name="x", overrides=(Override("temporal_attention", None, None),))
    errors = site_errors(quantize(model, recipe), settings)
    assert errors.keys() == {site.name for site in model.sites if site.role != "temporal_attention"}


def test_more_bits_err_less(model, settings):
    four, eight = (site_errors(quantize(model, get_recipe(f"dynamic-w{b}a{b}")), settings) for b in (4, 8))
    assert all((eight[name] < four[name]).all() for name in four)


def test_an_equivalent_transformation_is_no_error(model, settings, statistics):
    """Folded or not, every layer gets the input it expects."""
    recipe = Recipe("x", None, ActivationFormat(16, "dynamic_per_token"), channels=ShiftAndScale(sites=("*",)))
    errors = site_errors(quantize(model, recipe, statistics), settings)
    assert max(float(error.max()) for error in errors.values()) < 1e-5


@pytest.mark.parametrize("method", ["tfmq-dm", "tabulated"])
def test_layers_that_know_the_step_are_told_it(model, settings, statistics, method):
    variant = quantize(model, get_recipe(f"{method}-w8a8"), statistics)
    errors = site_errors(variant, settings)
    features = [errors[site.name] for site in model.sites if site.role == "temporal_features"]
    assert features
    assert max(float(error.max()) for error in features) < (1e-9 if method == "tabulated" else 1e-2)
    with pytest.raises(GenerationError, match="fixed to the 2 steps"):
        site_errors(variant, replace(settings, steps=3))


def test_families_without_a_map_work(wan):
    from qvd_core.sampling import default_settings

    variant = quantize(wan, Recipe("x", WeightFormat(4), None), calibrate(wan, ["a red circle"]))
    errors = site_errors(variant, default_settings(wan, "a red circle"))
    assert all(0 < float(error.max()) < 1 for error in errors.values())
