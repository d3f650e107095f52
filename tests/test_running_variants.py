"""Variants at work: side by side in threads, and nothing of a clip stays."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.formats import (
    ActivationFormat,
    ChannelBalancing,
    ShiftAndScale,
    WeightFormat,
)
from qvd_core.layers.inputs import (
    DynamicPerToken,
)
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sampling import generate
from qvd_core.variant import quantize
from tests.closeness import assert_same
from tests.denoiser_calls import recorded_calls
from tests.variants import PROMPT, error_of, layer_of, own_quantizer


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
