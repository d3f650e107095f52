"""Tables of what every site costs alone, against recipes with that site only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.errors import Cancelled, GenerationError, RecipeError
from qvd_core.formats import Override
from qvd_core.models.sites import find_inputs
from qvd_core.recipe import get_recipe
from qvd_core.replay import Replay, record_calls
from qvd_core.sampling import default_settings
from qvd_core.sensitivity import (
    FLOAT,
    Sensitivity,
    at_bits_everywhere,
    measured_sensitivity,
    proxy_sensitivity,
    scaled_sensitivity,
)
from qvd_core.token_error import token_errors
from qvd_core.variant import quantize
from tests.conftest import CAPTION
from tests.denoiser_calls import recorded_calls

CHOICES = ((4, 4), (8, 8), FLOAT)


@pytest.fixture(scope="module")
def table(model, statistics):
    return proxy_sensitivity(model, get_recipe("minmax-w8a8"), statistics, CHOICES)


def test_the_proxy_is_the_error_on_tokens(model, statistics, table):
    assert table.kind == "proxy"
    assert list(table.errors) == [site.name for site in model.sites]
    for bits in CHOICES[:2]:
        variant = quantize(model, at_bits_everywhere(table.recipe, bits), statistics)
        expected = token_errors(variant, statistics)
        assert {name: own[bits] for name, own in table.errors.items()} == expected
    for own in table.errors.values():
        assert tuple(own) == CHOICES
        assert own[FLOAT] == 0 < own[8, 8] < own[4, 4]


@pytest.mark.parametrize("method", ["qvd", "tabulated", "tfmq-dm", "q-diffusion"])
def test_what_the_recipe_fixes_has_one_choice(model, statistics, method):
    recipe = get_recipe(f"{method}-w8a8")
    seen = []
    table = proxy_sensitivity(model, recipe, statistics, CHOICES, lambda *progress: seen.append(progress))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for site in model.sites:
        own = table.errors[site.name]
        if site.role == "first_layer":
            assert own.keys() == {(8, 8)}
            assert 0 < own[8, 8] < 1e-2
        elif site.role == "last_layer":
            assert own.keys() == {(8, None)}
            assert 0 < own[8, None] < 1e-2
        elif method == "tabulated" and site.role in ("time_embedding", "temporal_features"):
            assert own == {FLOAT: 0}
        else:
            assert tuple(own) == CHOICES


def test_bits_out_of_range_are_refused_before_any_work(model, statistics, settings):
    recipe = get_recipe("minmax-w8a8")
    for choices, message in (((), "no bits to choose from"), (((8, 8), (9, 8)), "weight bits = 9 is out of range")):
        with pytest.raises(RecipeError, match=message):
            proxy_sensitivity(model, recipe, statistics, choices)
        with pytest.raises(RecipeError, match=message):
            measured_sensitivity(model, recipe, statistics, settings, choices)


def alone(model, recipe, statistics, name, bits, calls):
    """The definition: all else in floating point, whole denoiser calls."""
    only = replace(recipe, name="x", overrides=(Override("*", None, None), Override(name, *bits)))
    variant = quantize(model, only, statistics)
    errors = []
    for call in calls:
        exact, made = call(model.denoiser), call(variant.denoiser)
        errors.append(float((made - exact).square().sum() / exact.square().sum()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize(
    ("method", "bits"), [("minmax", (4, 4)), ("dynamic", (4, 8)), ("tfmq-dm", (4, 4)), ("mse", (None, 4))]
)
def test_measured_is_a_recipe_with_that_site_only(model, statistics, settings, method, bits):
    recipe = replace(get_recipe(f"{method}-w8a8"), name="x", overrides=())
    table = measured_sensitivity(model, recipe, statistics, settings, (bits,), calls=2)
    calls = recorded_calls(model, CAPTION)
    for site in model.sites[::9]:
        expected = alone(model, recipe, statistics, site.name, bits, calls)
        assert table.errors[site.name][bits] == pytest.approx(expected, rel=1e-3), site.name
        assert expected > 0


def test_folded_transformations_are_measured_as_they_are_used(model, statistics, settings):
    """A layer whose norm transforms its input, quantized without the others that read it: the same numbers."""
    recipe = replace(get_recipe("qvd-w8a8"), name="x", overrides=())
    table = measured_sensitivity(model, recipe, statistics, settings, ((8, 8),), calls=1)
    calls = recorded_calls(model, CAPTION)[:1]
    variant = quantize(model, recipe, statistics)
    assert variant.folded
    # The first reader of an input decides its transformation, so a recipe with it only has the same one.
    for shared in find_inputs(model.denoiser, model.sites):
        if variant.folded.issuperset(shared.consumers):
            expected = alone(model, recipe, statistics, shared.consumers[0], (8, 8), calls)
            assert table.errors[shared.consumers[0]][8, 8] == pytest.approx(expected, rel=2e-2)


def test_blocks_that_ran_before_are_not_run_again(model, statistics, settings):
    replay = Replay(model, record_calls(model, settings, 1)[0])
    ran = []
    for name, module in replay.denoiser.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    variant = quantize(model, get_recipe("minmax-w4a4"), statistics)
    last = next(site.name for site in model.sites if site.role == "last_layer")
    made = replay.with_layer(variant, last)
    assert "conv_norm_out" in ran
    assert not any("resnets" in name for name in ran)
    assert not torch.equal(made, replay.exact)
    ran.clear()
    assert torch.equal(replay._again(), replay.exact)  # and all of it is put back
    assert any("resnets" in name for name in ran)


def test_a_layer_left_in_floating_point_changes_nothing(model, settings):
    """Bit for bit, wherever it is: what is not computed again was recorded rightly."""
    variant = quantize(model, replace(get_recipe("dynamic-w8a8"), weights=None, activations=None, name="x"))
    replay = Replay(model, record_calls(model, settings, 1)[0])
    for site in model.sites:
        assert torch.equal(replay.with_layer(variant, site.name), replay.exact), site.name


def test_measuring_leaves_the_model_alone(model, statistics, settings):
    before = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    structure = [type(module) for module in model.denoiser.modules()]
    measured_sensitivity(model, get_recipe("minmax-w8a8"), statistics, settings, ((4, 4),), calls=1)
    assert [type(module) for module in model.denoiser.modules()] == structure
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.denoiser.modules())
    for name, tensor in model.denoiser.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_progress_counts_calls_and_can_end_them(model, statistics, settings):
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise Cancelled("The run was stopped.")

    with pytest.raises(Cancelled):
        measured_sensitivity(model, get_recipe("minmax-w8a8"), statistics, settings, CHOICES, calls=9, on_call=stop)
    # Two steps are two calls, and floating point needs none.
    assert seen == [(n, 2 * 2 * len(model.sites)) for n in (1, 2, 3)]


def test_impossible_clips_are_refused(model, statistics, settings):
    recipe = get_recipe("qvd-base-w8a8")
    with pytest.raises(GenerationError, match="calls = 0"):
        measured_sensitivity(model, recipe, statistics, settings, CHOICES, calls=0)
    with pytest.raises(GenerationError, match="prompt is empty"):
        measured_sensitivity(model, recipe, statistics, replace(settings, prompt=""), CHOICES)
    with pytest.raises(GenerationError, match="one grid for each of 4 frames, and 3 are asked for"):
        measured_sensitivity(model, recipe, statistics, replace(settings, frames=3), CHOICES)


def test_scaling():
    recipe = get_recipe("minmax-w8a8")
    proxy = {
        "a": {(4, 4): 8.0, (8, 8): 2.0, FLOAT: 0.0},
        "b": {(4, 4): 0.0, (8, 8): 0.0, FLOAT: 0.0},
        "c": {FLOAT: 0.0},
    }
    measured = {"a": {(4, 4): 0.4}, "b": {(4, 4): 0.3}, "c": {FLOAT: 0.0}}
    scaled = scaled_sensitivity(
        Sensitivity("proxy", recipe, proxy, 1.0), Sensitivity("measured", recipe, measured, 2.0)
    )
    assert (scaled.kind, scaled.recipe, scaled.seconds) == ("scaled", recipe, 3.0)
    assert scaled.errors == {
        "a": {(4, 4): pytest.approx(0.4), (8, 8): pytest.approx(0.1), FLOAT: 0.0},
        "b": {(4, 4): 0.3, (8, 8): 0.3, FLOAT: 0.0},
        "c": {FLOAT: 0.0},
    }


def test_scaling_by_what_does_not_belong_is_refused(table):
    other = replace(table, recipe=get_recipe("mse-w8a8"))
    with pytest.raises(RecipeError, match="One table is of minmax-w8a8, the other of mse-w8a8"):
        scaled_sensitivity(table, other)
    for bits in (FLOAT, (6, 6)):
        elsewhere = replace(table, errors={name: {bits: 0.0} for name in table.errors})
        with pytest.raises(RecipeError, match="Nothing was measured at any of the bits"):
            scaled_sensitivity(table, elsewhere)


def test_scaled_by_itself_a_table_stays(table):
    scaled = scaled_sensitivity(table, table)
    assert all(own == pytest.approx(table.errors[name]) for name, own in scaled.errors.items())


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_families_without_a_map_work(family, request):
    model = request.getfixturevalue(family)
    statistics, recipe = calibrate(model, ["a red circle"]), get_recipe("minmax-w8a8")
    proxy = proxy_sensitivity(model, recipe, statistics, ((4, 8),))
    settings = default_settings(model, "a red circle")
    measured = measured_sensitivity(model, recipe, statistics, settings, ((4, 8),), calls=2)
    for table in (proxy, measured):
        assert all(0 < own[4, 8] < 1 for own in table.errors.values())
