"""The time path of an integer variant: looked up by step, and computed where no table knows the step."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.calibration.temporal_features import sampler_timesteps
from qvd_core.engines import cpu_int8
from qvd_core.engines.integer import in_integers
from qvd_core.errors import GenerationError
from qvd_core.recipe import TIME_PATH, get_recipe
from qvd_core.sampling import default_settings, generate
from qvd_core.variant import quantize
from tests.closeness import assert_close, assert_same
from tests.denoiser_calls import recorded_calls
from tests.engines.conversions import layers_at_work
from tests.variants import PROMPT, difference, error_of, layer_of

pytestmark = pytest.mark.skipif(cpu_int8.unavailable() is not None, reason=f"{cpu_int8.unavailable()}")

FREE = ["qvd-htdq-w8a8", "minmax-w4a4", "dynamic-w8a8"]
BOUND = ["tfmq-dm-w4a8", "tabulated-w8a8"]
recipes = pytest.mark.parametrize("name", FREE + BOUND)


@pytest.fixture(scope="module")
def three_steps(model):
    """Statistics of a sampler of three steps, and its calls."""
    return calibrate(model, [PROMPT], steps=3), recorded_calls(model, PROMPT, steps=3)


def time_path(model) -> list[str]:
    return [site.name for site in model.sites if site.role in TIME_PATH]


@recipes
def test_tables_hold_what_the_layers_compute_at_every_step(model, three_steps, name):
    """Up to the order in which products of another number of rows are added up."""
    statistics, calls = three_steps
    variant = quantize(model, get_recipe(name), statistics)
    converted = in_integers(variant)
    for step, call in enumerate(calls):
        computed = layers_at_work(variant, call, time_path(model))
        looked_up = layers_at_work(converted, call, time_path(model))
        assert computed.keys() == looked_up.keys() == set(time_path(model))
        for site, (_, expected) in computed.items():
            rows = layer_of(converted, site).outputs
            assert len(rows) == 3
            assert_close(looked_up[site][1], expected, 2e-6 * float(expected.abs().max()), f"{site} at step {step}")
            assert_same(looked_up[site][1], rows[step].expand_as(expected), f"{site} at step {step}")


@recipes
def test_nothing_of_the_time_path_is_computed_while_sampling(model, statistics, settings, name):
    converted = in_integers(quantize(model, get_recipe(name), statistics))
    looked_up, computed = [], []
    for site in time_path(model):
        table = layer_of(converted, site)
        table.register_forward_hook(lambda *_: looked_up.append(1))
        table.layer.register_forward_hook(lambda *_: computed.append(1))
    generate(converted, settings)
    assert len(looked_up) == settings.steps * len(time_path(model))
    assert not computed


@pytest.mark.parametrize("name", FREE)
def test_other_steps_are_computed_and_say_so(model, named, name):
    variant = named(name)
    converted = in_integers(variant)
    settings = default_settings(model, PROMPT, steps=3)
    with pytest.warns(UserWarning, match="none of the 2 whose time path is tabulated: it is computed") as caught:
        clip = generate(converted, settings)
    unknown = sampler_timesteps(model, 3)[1:].tolist()  # the first step of all samplers is the same
    assert {float(str(w.message).split()[1]) for w in caught if "tabulated" in str(w.message)} == set(unknown)
    exact, simulated = generate(model, settings), generate(variant, settings)
    assert error_of(clip, exact) < 1.25 * error_of(simulated, exact)
    call = recorded_calls(model, PROMPT, steps=3)[1]
    computed = layers_at_work(variant, call, time_path(model))
    with pytest.warns(UserWarning, match="it is computed"):
        fallen_back = layers_at_work(converted, call, time_path(model))
    for site, (_, expected) in computed.items():
        assert_same(fallen_back[site][1], expected, site)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(converted, default_settings(model, PROMPT))  # by the tables again


@pytest.mark.parametrize("name", BOUND)
def test_recipes_bound_to_their_steps_refuse_others(model, named, call, name):
    converted = in_integers(named(name))
    expected = call(converted.denoiser)
    with pytest.raises(GenerationError, match=r"2 steps .* sample with 2 steps"):
        generate(converted, default_settings(model, PROMPT, steps=3))
    with ThreadPoolExecutor(1) as pool:  # the refused call holds nobody up
        assert_same(pool.submit(call, converted.denoiser).result(timeout=60), expected)


def test_a_failed_call_holds_nobody_up(model, named, call):
    converted = in_integers(named("minmax-w8a8"))
    expected = call(converted.denoiser)
    with pytest.raises(RuntimeError):
        converted.denoiser(torch.zeros(1, 4, 4, 8, 8), torch.tensor(999), torch.zeros(1, 5, 999))
    with ThreadPoolExecutor(1) as pool:
        assert_same(pool.submit(call, converted.denoiser).result(timeout=60), expected)


def test_a_thread_waits_until_the_other_has_read_its_row(model, named):
    """The second call begins while the first is inside the denoiser."""
    converted = in_integers(named("minmax-w8a8"))
    calls = recorded_calls(model, PROMPT)
    alone = [call(converted.denoiser) for call in calls]
    inside, second = threading.Event(), threading.Event()

    def hold(_, args):
        if not inside.is_set():
            inside.set()
            assert not second.wait(0.3), "the second call ran in the middle of the first"

    converted.denoiser.conv_in.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(calls[0], converted.denoiser)
        assert inside.wait(60)
        other = pool.submit(lambda: (calls[1](converted.denoiser), second.set())[0])
        assert_same(first.result(timeout=60), alone[0])
        assert_same(other.result(timeout=60), alone[1])


def test_steps_differ(model, named):
    """Guards the tests above: a table that always gave one row would show."""
    converted = in_integers(named("minmax-w8a8"))
    rows = layer_of(converted, "mid_block.resnets.0.time_emb_proj").outputs
    assert difference(rows[0], rows[1]) > 0.01
