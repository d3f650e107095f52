"""Compiled integer variants: they check their arguments and not their layers, so nothing may be mixed up.

Most tests trace without generating code, which is where a variant could meet what was compiled for another.
"""

from __future__ import annotations

import copy
import gc
import inspect
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from qvd_core.calibration.temporal_features import sampler_timesteps
from qvd_core.engines import cpu_int8
from qvd_core.engines.integer import in_integers
from qvd_core.errors import EngineError
from qvd_core.formats import HTDQ, ActivationFormat, Tabulated, WeightFormat
from qvd_core.layers.clock import StepClock
from qvd_core.layers.inputs import StaticPerStep
from qvd_core.recipe import Recipe
from qvd_core.variant import Variant, quantize
from tests.closeness import assert_close, assert_same
from tests.engines.conversions import assert_placed
from tests.engines.toy_unet import ToyUNet, toy_call, toy_model

pytestmark = pytest.mark.skipif(cpu_int8.unavailable() is not None, reason=f"{cpu_int8.unavailable()}")

DYNAMIC = ActivationFormat(8, "dynamic_per_token")
PLAIN = Recipe("plain", WeightFormat(8, symmetric=False), DYNAMIC)
OTHER = Recipe("other", WeightFormat(4), ActivationFormat(4, "dynamic_per_token"))
TABULATED = Recipe("tabulated", WeightFormat(8), DYNAMIC, temporal=Tabulated())
LOGARITHMIC = Recipe("logarithmic", WeightFormat(8), DYNAMIC, temporal=HTDQ(coefficient=2.0))


@pytest.fixture(scope="module")
def toy():
    return toy_model()


@pytest.fixture
def traced(monkeypatch):
    """What is compiled runs as it was traced; gives the number of graphs so far."""
    real, graphs = torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def without_code(function, options, **choices):
        kept = {name: value for name, value in options.items() if name == "guard_filter_fn"}
        return real(function, backend=backend, options=kept, **choices)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", without_code)
    yield graphs
    torch._dynamo.reset()


@pytest.fixture
def steps(toy):
    return sampler_timesteps(toy, 4).tolist()


def call(variant: Variant, timestep: float, **sizes: int) -> torch.Tensor:
    with torch.inference_mode():
        return variant.denoiser(**toy_call(timestep, **sizes))[0]


def per_step(toy, low: float) -> Variant:
    """A variant with a range for every step in the layer after the attention, which is no part of the time path."""
    variant = quantize(toy, PLAIN)
    timesteps = sampler_timesteps(toy, 4)
    clock = StepClock(variant.denoiser, timesteps)
    ends = torch.linspace(low, 4, 4)
    variant.denoiser.conv_out.quantize_input = StaticPerStep(-ends, ends, ActivationFormat(8, "static_per_step"), clock)
    return replace(variant, clock=clock)


VARIANTS = {
    "plain": lambda toy: quantize(toy, PLAIN),
    "tabulated": lambda toy: quantize(toy, TABULATED),
    "logarithmic": lambda toy: quantize(toy, LOGARITHMIC),
    "per-step": lambda toy: per_step(toy, 0.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_all_steps_are_one_graph_and_give_what_is_not_compiled(toy, traced, steps, name):
    variant = VARIANTS[name](toy)
    plain, compiled = in_integers(variant), in_integers(variant, compiled=True)
    results = [call(compiled, step) for step in steps]
    for step, result in zip(steps, results, strict=True):
        assert_same(result, call(plain, step), f"step {step}")
    assert len(traced) == 1
    assert not torch.equal(results[0], results[1])


def test_placements_of_a_small_unet(toy):
    """With a grouped layer, and layers of the time path, all of which other tests of this file compile."""
    for recipe in (PLAIN, TABULATED, LOGARITHMIC, OTHER):
        assert_placed(in_integers(quantize(toy, recipe)))
    reason = in_integers(quantize(toy, PLAIN)).placements["grouped"].reason
    assert reason == "a grouped convolution whose weights have zero points"


def test_other_sizes_and_other_timesteps(toy, traced, steps):
    variant = quantize(toy, PLAIN)
    plain, compiled = in_integers(variant), in_integers(variant, compiled=True)
    sizes = [{}, {"samples": 3, "height": 8, "tokens": 7}, {"samples": 4, "height": 4, "tokens": 2}, {}]
    for number, size in enumerate(sizes):
        step = steps[number % 4]
        assert_same(call(compiled, step, **size), call(plain, step, **size), str(size))
    with pytest.warns(UserWarning, match="it is computed"):
        made, expected = call(compiled, 500.5), call(plain, 500.5)
    assert_same(made, expected, "a timestep without a row")
    assert_same(call(compiled, steps[2]), call(plain, steps[2]), "by the tables again")


@torch._dynamo.config.patch(recompile_limit=1, automatic_dynamic_shapes=False)
def test_more_sizes_than_are_compiled(toy, traced, steps):
    variant = quantize(toy, PLAIN)
    plain, compiled = in_integers(variant), in_integers(variant, compiled=True)
    call(compiled, steps[0])
    with pytest.warns(UserWarning, match="Clips of this size are computed uncompiled"):
        made = call(compiled, steps[0], height=8)
    assert_same(made, call(plain, steps[0], height=8))
    assert_same(call(compiled, steps[1], height=8), call(plain, steps[1], height=8), "the same size again")
    assert_same(call(compiled, steps[1]), call(plain, steps[1]), "the compiled size")


def test_variants_do_not_meet_what_was_compiled_for_others(toy, traced, steps):
    """The same model and code, other layers; in turns, and after the first is gone."""
    variants = [quantize(toy, recipe) for recipe in (PLAIN, OTHER, TABULATED)]
    plain = [in_integers(variant) for variant in variants]
    compiled = [in_integers(variant, compiled=True) for variant in variants]
    for step in steps[:2]:
        for number in (0, 1, 2):
            assert_same(call(compiled[number], step), call(plain[number], step), f"{number} at step {step}")
    assert not torch.equal(call(plain[0], steps[0]), call(plain[1], steps[0]))
    layer = weakref.ref(compiled[0].denoiser.conv_in)
    compiled[0] = None
    gc.collect()
    assert layer() is None, "what is compiled keeps its variant"
    later = in_integers(variants[1], compiled=True)
    for variant in (later, compiled[1]):
        assert_same(call(variant, steps[3]), call(plain[1], steps[3]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda denoiser: copy.copy(denoiser)], ids=["deep", "shallow"])
def test_copies_compute_the_same(toy, traced, steps, copied):
    """A copy has a clock of its own, which the original's graph does not read."""
    compiled = in_integers(quantize(toy, TABULATED), compiled=True)
    expected = [call(compiled, step) for step in steps]
    twin = replace(compiled, denoiser=copied(compiled.denoiser))
    assert_same(call(twin, steps[2]), expected[2], "the copy")
    assert_same(call(compiled, steps[1]), expected[1], "the original")


def test_two_threads(toy, traced, steps):
    """Of one variant, whose first calls they make at once, and of two."""
    variants = [in_integers(quantize(toy, recipe), compiled=True) for recipe in (PLAIN, OTHER)]
    expected = [[call(in_integers(quantize(toy, r)), step) for step in steps] for r in (PLAIN, OTHER)]
    for numbers in ((0, 0), (0, 1)):
        with ThreadPoolExecutor(2) as pool:
            jobs = [(n, s, pool.submit(call, variants[n], steps[s])) for s in range(4) for n in numbers]
            for number, step, job in jobs:
                assert_same(job.result(timeout=120), expected[number][step], f"variant {number} at step {step}")


class Talking(ToyUNet):
    """Says something that no graph can hold, before layers that share their code."""

    def forward(self, sample, timestep, encoder_hidden_states):
        torch._dynamo.graph_break()
        return super().forward(sample, timestep, encoder_hidden_states)


def test_what_does_not_fit_one_graph_is_not_compiled(traced, steps):
    """A second graph would begin in code that layers share, and take those of another place for its own."""
    talking = toy_model(Talking())
    variant = quantize(talking, PLAIN)
    plain, compiled = in_integers(variant), in_integers(variant, compiled=True)
    with pytest.warns(UserWarning, match="Clips of this size are computed uncompiled"):
        made = call(compiled, steps[0])
    assert_same(made, call(plain, steps[0]))
    assert_same(call(compiled, steps[1]), call(plain, steps[1]))


def test_a_compiler_that_fails_says_what_to_do(toy, monkeypatch, steps):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options, **choices: real(function, backend=broken))
    compiled = in_integers(quantize(toy, PLAIN), compiled=True)
    with pytest.raises(EngineError, match=r"no compiler here.* without compiled=True"):
        call(compiled, steps[0])


def test_a_pipeline_still_sees_what_the_denoiser_takes(toy):
    compiled = in_integers(quantize(toy, PLAIN), compiled=True).denoiser
    assert list(inspect.signature(compiled.forward).parameters) == ["sample", "timestep", "encoder_hidden_states"]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler was found")
def test_generated_code_gives_what_is_not_compiled(toy, steps):
    """Up to rounding, of which little comes to a tie here; two variants, in turns."""
    torch._dynamo.reset()
    variants = [quantize(toy, recipe) for recipe in (PLAIN, OTHER)]
    plain = [in_integers(variant) for variant in variants]
    compiled = [in_integers(variant, compiled=True) for variant in variants]
    for step in steps[:2]:
        for number in (0, 1):
            made, expected = call(compiled[number], step), call(plain[number], step)
            assert_close(made, expected, 0.02 * float(expected.abs().max()), f"{number} at {step}")
            assert float((made - expected).abs().median()) < 1e-5 * float(expected.abs().max())
