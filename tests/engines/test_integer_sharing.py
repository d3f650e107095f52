"""Integer variants at work: what readers of one input share, several threads, and copies."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.engines import cpu_int8
from qvd_core.engines.cpu_int8 import Codes
from qvd_core.engines.int8_layer import Int8Layer
from qvd_core.engines.integer import in_integers
from qvd_core.layers.inputs import OncePerInput
from qvd_core.recipe import get_recipe
from qvd_core.sampling import generate
from qvd_core.variant import quantize, share_structure
from tests.closeness import assert_same
from tests.denoiser_calls import recorded_calls
from tests.variants import PROMPT, layer_of

pytestmark = pytest.mark.skipif(cpu_int8.unavailable() is not None, reason=f"{cpu_int8.unavailable()}")

SELF = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"
TEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def integer(named):
    return functools.cache(lambda name: in_integers(named(name)))


@pytest.fixture(scope="module")
def four_steps(model):
    """Statistics of a sampler of four steps, and its calls."""
    return calibrate(model, [PROMPT], steps=4), recorded_calls(model, PROMPT, steps=4)


def made(module: torch.nn.Module) -> list[weakref.ref]:
    """All codes, or all of anything else, that it will make."""
    tensors: list[weakref.ref] = []

    def note(_: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        tensors.append(weakref.ref(output[0] if isinstance(output, tuple) else output))

    module.register_forward_hook(note)
    return tensors


@pytest.mark.parametrize("name", ["minmax-w8a8", "qvd-w8a8", "dynamic-w8a8"])
def test_layers_that_read_the_same_are_one_product(named, settings, name):
    """q, k and v of a self-attention read one tensor, k and v of the text another; q of the text its own."""
    variant = in_integers(named(name))
    own, text = layer_of(variant, SELF), layer_of(variant, TEXT)
    assert own.to_q.together is own.to_k.together is own.to_v.together
    assert text.to_k.together is text.to_v.together
    assert isinstance(text.to_q, Int8Layer)
    wholes = own.to_q.together.quantizer, text.to_k.together.quantizer
    assert [whole.weight_count for whole in wholes] == [
        sum(layer_of(variant.model, f"{where}.to_{letter}").weight.numel() for letter in letters)
        for where, letters in ((SELF, "qkv"), (TEXT, "kv"))
    ]
    tensors = [made(module) for whole in wholes for module in (whole, whole.codes)]
    generate(variant, settings)
    assert [len(found) for found in tensors] == 4 * [settings.steps]


@pytest.mark.parametrize("name", ["minmax-w8a8", "qvd-w4a8", "dynamic-w8a8"])
def test_the_codes_of_packed_layers_are_made_once(named, settings, name):
    variant = in_integers(named(name), packed=True)
    own, text = layer_of(variant, SELF), layer_of(variant, TEXT)
    assert own.to_q.codes is own.to_k.codes is own.to_v.codes
    assert text.to_k.codes is text.to_v.codes is not text.to_q.codes
    tensors = made(own.to_q.codes.quantizer), made(text.to_k.codes.quantizer)
    generate(variant, settings)
    assert [len(codes) for codes in tensors] == [settings.steps, settings.steps]


def test_nothing_of_a_clip_stays_in_a_variant(named, settings):
    variant = in_integers(named("qvd-w8a8"))
    tensors = [made(module) for module in variant.denoiser.modules() if isinstance(module, Codes)]
    generate(variant, settings)
    gc.collect()
    assert sum(len(codes) for codes in tensors) > 100
    assert not [ref for codes in tensors for ref in codes if ref() is not None]


@pytest.mark.parametrize("floating", ["q", "qk"])
def test_readers_that_stay_in_floating_point_are_not_waited_for(model, statistics, settings, floating):
    """Whoever remembers codes for a reader that never comes keeps them, and would hand them out once too often."""
    recipe = get_recipe("minmax-w8a8")
    for letter in floating:
        recipe = recipe.override(f"{SELF}.to_{letter}", None, 8)
    variant = in_integers(quantize(model, recipe, statistics))
    attention = layer_of(variant, SELF)
    whole, simulated = attention.to_v, attention.to_q.quantize_input
    tensors = made(whole.together.quantizer.codes if floating == "q" else whole.codes)
    restored: list[weakref.ref] = []
    simulated.quantizer.register_forward_hook(lambda _, args, output: restored.append(weakref.ref(output)))
    generate(variant, settings)
    gc.collect()
    assert len(tensors) == len(restored) == settings.steps
    assert not [ref for ref in (*tensors, *restored) if ref() is not None]
    assert simulated.readers == len(floating)


@pytest.mark.parametrize("name", ["tfmq-dm-w4a8", "qvd-w4a8", "tabulated-w4a8", "minmax-w8a8"])
def test_one_variant_in_several_threads_at_different_steps(model, four_steps, name):
    statistics, calls = four_steps
    denoiser = in_integers(quantize(model, get_recipe(name), statistics)).denoiser
    alone = [call(denoiser) for call in calls]
    assert not torch.equal(alone[0], alone[1])
    barrier = threading.Barrier(4, timeout=60)

    def repeat(call):
        results = []
        for _ in range(2):
            barrier.wait()
            results.append(call(denoiser))
        return results

    with ThreadPoolExecutor(4) as pool:
        for step, results in enumerate(pool.map(repeat, calls)):
            for result in results:
                assert_same(result, alone[step], f"step {step}")


def test_different_variants_in_threads(named, integer, call):
    """Two integer ones, and a simulated one that one of them was made from."""
    denoisers = [integer(name).denoiser for name in ("tfmq-dm-w4a4", "tabulated-w8a8")]
    denoisers.append(named("tfmq-dm-w4a4").denoiser)
    alone = [call(denoiser) for denoiser in denoisers]
    with ThreadPoolExecutor(3) as pool:
        for number, result in enumerate(pool.map(lambda i: call(denoisers[i % 3]), range(9))):
            assert_same(result, alone[number % 3], f"call {number}")


@pytest.mark.parametrize("copied", [copy.deepcopy, share_structure])
@pytest.mark.parametrize("name", ["tfmq-dm-w4a4", "q-diffusion-w8a8", "tabulated-w8a8"])
def test_copies_compute_the_same_by_clocks_of_their_own(model, integer, copied, name):
    variant = integer(name)
    twin = copied(variant.denoiser)
    calls = recorded_calls(model, PROMPT)
    alone = [call(variant.denoiser) for call in calls]
    assert_same(calls[1](twin), alone[1], "the copy, at another step than its original was")
    assert_same(calls[0](variant.denoiser), alone[0], "the original")
    table, copied_table = (d.get_submodule("mid_block.resnets.0.time_emb_proj") for d in (variant.denoiser, twin))
    assert table.clock is not copied_table.clock
    assert not {id(m) for m in twin.modules() if isinstance(m, OncePerInput)}.intersection(
        id(m) for m in variant.denoiser.modules()
    )
