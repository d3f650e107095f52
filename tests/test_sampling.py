"""Sampling: reproducible, watched, stopped at once, refused early, and undisturbed by other runs."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from qvd_core.calibration.calibrate import calibrate
from qvd_core.errors import Cancelled, GenerationError, OutOfMemory
from qvd_core.models.loader import VideoModel
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sampling import check_settings, default_settings, generate
from qvd_core.variant import Variant, quantize, share_structure
from tests.closeness import assert_close, assert_same, assert_same_clip, differs

PROMPT = "a red circle moving left on a striped gray background"


def stand_in(model, forward) -> Variant:
    """A variant whose denoiser is called through `forward(original_forward, *args, **kwargs)`."""
    denoiser = share_structure(model.denoiser)
    original = denoiser.forward
    denoiser.forward = lambda *args, **kwargs: forward(original, *args, **kwargs)
    return Variant(model, Recipe("stand-in", None, None), denoiser)


def test_a_clip_has_the_documented_form(reference, settings):
    assert reference.frames.shape == (settings.frames, settings.height, settings.width, 3)
    assert reference.frames.dtype == np.float32
    assert reference.frames.min() >= 0
    assert reference.frames.max() <= 1
    assert reference.frames.std() > 0.01
    assert len(reference.latents_by_step) == settings.steps
    assert {(z.shape, z.dtype, z.device.type) for z in reference.latents_by_step} == {
        ((1, 4, settings.frames, 8, 8), torch.float32, "cpu")
    }
    assert reference.seconds > 0


def test_the_same_seed_gives_the_same_clip_and_every_setting_matters(model, settings, reference):
    assert_same_clip(generate(model, settings), reference)
    for change in (
        {"seed": 1},
        {"prompt": "a blue ring growing on a plain white background"},
        {"negative_prompt": "a red circle"},
        {"guidance_scale": 2.0},
        {"steps": 3},
    ):
        assert differs(generate(model, replace(settings, **change)), reference), change


def test_the_global_random_state_neither_matters_nor_changes(model, settings, reference):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert_same_clip(generate(model, settings), reference)
    assert torch.equal(torch.get_rng_state(), before)


def test_guidance_of_one_ignores_the_negative_prompt(model, settings):
    unguided = replace(settings, guidance_scale=1.0)
    assert_same_clip(generate(model, replace(unguided, negative_prompt="a blue ring")), generate(model, unguided))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (16, 16, 16), (3, 32, 16)])
def test_other_sizes(model, settings, frames, height, width):
    clip = generate(model, replace(settings, frames=frames, height=height, width=width, steps=1))
    assert clip.frames.shape == (frames, height, width, 3)


def test_the_watcher_sees_every_step_once(model, settings):
    seen = []
    clip = generate(model, replace(settings, steps=5), seen.append)
    assert [info.index for info in seen] == [0, 1, 2, 3, 4]
    assert {info.total for info in seen} == {5}
    assert [info.timestep for info in seen] == [999, 799, 599, 399, 199]
    for info, kept in zip(seen, clip.latents_by_step, strict=True):
        assert_same(info.latents.float(), kept, f"latents of step {info.index}")


def test_watching_and_previewing_change_nothing(model, settings, reference):
    previews = []
    clip = generate(model, settings, lambda info: previews.append(info.preview()))
    assert_same_clip(clip, reference)
    for frames in previews:
        assert frames.shape == reference.frames.shape
        assert frames.min() >= 0
        assert frames.max() <= 1
    # The guess of the clean clip after the last step is the clip.
    assert_close(previews[-1], reference.frames, 1e-5, "last preview")
    assert np.abs(previews[0] - previews[-1]).max() > 1e-3


def test_a_family_whose_decoder_is_not_known_has_no_preview(wan):
    seen = []
    generate(wan, default_settings(wan, "a red circle"), seen.append)
    assert [info.preview for info in seen] == [None, None]


@pytest.mark.parametrize("last", [0, 2, 4], ids=["first-step", "middle", "last-step"])
def test_cancelling_stops_at_once_and_leaves_the_model_usable(model, settings, reference, last):
    calls = []

    def counting(original, *args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    def stop(info):
        if info.index == last:
            raise Cancelled("stopped on request")

    with pytest.raises(Cancelled, match="stopped on request"):
        generate(stand_in(model, counting), replace(settings, steps=5), stop)
    assert len(calls) == last + 1
    assert_same_clip(generate(model, settings), reference)


WRONG_SETTINGS = {
    "empty-prompt": ({"prompt": ""}, "The prompt is empty"),
    "blank-prompt": ({"prompt": " \n"}, "The prompt is empty"),
    "long-prompt": ({"prompt": "red " * 19}, "The prompt has 21 tokens, but tiny reads 20"),
    "long-negative-prompt": ({"negative_prompt": "red " * 40}, "The negative prompt has 42 tokens"),
    "no-frames": ({"frames": 0}, "frames = 0 is out of range; choose a whole number from 1 to 16"),
    "a-million-frames": ({"frames": 1_000_000}, "frames = 1000000 is out of range"),
    "more-frames-than-the-adapter-knows": ({"frames": 17}, "frames = 17 .* from 1 to 16"),
    "half-a-frame": ({"frames": 2.5}, r"frames = 2\.5"),
    "no-steps": ({"steps": 0}, "steps = 0 is out of range; choose a whole number from 1 to 1000"),
    "too-many-steps": ({"steps": 1001}, "steps = 1001"),
    "height-between-latents": ({"height": 17}, "height = 17 is not a multiple of 2 pixels; try 16"),
    "width-between-latents": ({"width": 19}, "width = 19 is not a multiple of 2 pixels; try 20"),
    "no-height": ({"height": 0}, "height = 0"),
    "enormous-width": ({"width": 1_000_000}, "width = 1000000"),
    "negative-seed": ({"seed": -1}, "seed = -1"),
    "seed-beyond-63-bits": ({"seed": 2**63}, f"seed = {2**63}"),
    "bool-seed": ({"seed": True}, "seed = True"),
    "text-seed": ({"seed": "7"}, "seed = '7'"),
    "guidance-nan": ({"guidance_scale": math.nan}, "guidance_scale = nan is out of range; choose 0 to 100"),
    "guidance-infinite": ({"guidance_scale": math.inf}, "guidance_scale = inf"),
    "negative-guidance": ({"guidance_scale": -0.5}, r"guidance_scale = -0\.5"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_what_cannot_be_sampled_is_refused_before_any_work(model, settings, change, message):
    calls = []
    source = stand_in(model, lambda original, *args, **kwargs: calls.append(1))
    with pytest.raises(GenerationError, match=message):
        generate(source, replace(settings, **change))
    assert not calls


def test_limits_themselves_are_allowed(model, settings):
    for change in ({"frames": 16}, {"steps": 1000}, {"seed": 2**63 - 1}, {"prompt": "red " * 18}):
        check_settings(model, replace(settings, **change))
    for scale in (0, 100):
        check_settings(model, replace(settings, guidance_scale=scale))


def test_a_transformer_needs_sizes_of_whole_patches(wan):
    settings = default_settings(wan, "a red circle")
    with pytest.raises(GenerationError, match="height = 24 is not a multiple of 16 pixels; try"):
        check_settings(wan, replace(settings, height=24))


def test_defaults_are_the_models_own_and_changes_that_are_none_count_as_absent(model, wan):
    made = default_settings(model, PROMPT, seed=7, frames=None, height=32)
    assert (made.prompt, made.seed, made.frames, made.height, made.width) == (PROMPT, 7, 4, 32, 16)
    assert (made.steps, made.guidance_scale) == (model.spec.steps, model.spec.guidance_scale)
    assert default_settings(wan, PROMPT).height == 16


def test_a_result_that_is_not_finite_is_not_shown(model, settings):
    def broken(original, *args, **kwargs):
        output = original(*args, **kwargs)
        output.sample[:, :, 0] = math.nan
        return output

    with pytest.raises(GenerationError, match="NaN or infinite values"):
        generate(stand_in(model, broken), settings)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("not enough memory: you tried to allocate 1 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "cpu-windows", "python"],
)
def test_exhausted_memory_says_what_to_do(model, settings, reference, error):
    def starved(original, *args, **kwargs):
        raise error

    with pytest.raises(OutOfMemory, match=r"Not enough memory for 4 frames of 16x16\. Ask for fewer frames") as caught:
        generate(stand_in(model, starved), settings)
    assert caught.value.__cause__ is error
    assert_same_clip(generate(model, settings), reference)


def test_other_errors_pass_as_they_are(model, settings):
    def faulty(original, *args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        generate(stand_in(model, faulty), settings)


def test_prompts_read_at_once_are_read_as_if_alone(model, monkeypatch):
    """Tokenizers keep how to pad from call to call, so runs side by side may not share one."""
    plans = [default_settings(model, "red " * words, steps=1, frames=1) for words in range(1, 9)]
    alone = [generate(model, plan).latents_by_step[0] for plan in plans]
    kind = type(model.pipeline.tokenizer)
    choose = kind.set_truncation_and_padding

    def choose_slowly(*args, **kwargs):
        choose(*args, **kwargs)
        time.sleep(0.005)  # what a busy machine does now and then

    monkeypatch.setattr(kind, "set_truncation_and_padding", choose_slowly)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda plan: generate(model, plan).latents_by_step[0], 2 * plans))
    for number, latents in enumerate(together):
        assert_same(latents, alone[number % 8], plans[number % 8].prompt)


def test_runs_at_once_equal_runs_alone(model, settings, statistics):
    """Two recipes and a calibration in three threads; each must come out as if it had been alone."""
    longer = replace(settings, steps=6)
    variants = [quantize(model, get_recipe(name), statistics) for name in ("minmax-w4a4", "dynamic-w8a8")]
    alone = [generate(variant, longer) for variant in variants]
    alone_statistics = calibrate(model, [PROMPT], steps=6)

    results: dict[int, object] = {}
    start = threading.Barrier(3)

    def run(number, work):
        start.wait()
        results[number] = work()

    work = [lambda v=v: generate(v, longer) for v in variants] + [lambda: calibrate(model, [PROMPT], steps=6)]
    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_clip(results[0], alone[0])
    assert_same_clip(results[1], alone[1])
    for name, low in alone_statistics.low.items():
        assert_same(results[2].low[name], low, f"lows of {name}")
        assert_same(results[2].high[name], alone_statistics.high[name], f"highs of {name}")


def test_a_run_inside_another_of_other_length(model, settings, reference):
    """Schedulers count steps, so every run needs its own."""
    other = replace(settings, seed=1, steps=5)
    inside = []
    clip = generate(model, settings, lambda info: inside.append(generate(model, other)))
    assert_same_clip(clip, reference)
    for nested in inside:
        assert_same_clip(nested, generate(model, other))


def test_a_decoder_with_a_memory_is_not_shared_between_runs(wan):
    """Wan's autoencoder keeps features from frame to frame; here one run decodes in the middle of another."""
    settings = default_settings(wan, "a red circle", steps=1)
    alone = generate(wan, settings)
    nested = []

    def interrupt(*_):
        if not nested:
            nested.append(None)
            nested[0] = generate(wan, replace(settings, seed=1))

    handle = wan.pipeline.vae.decoder.register_forward_hook(interrupt)
    try:
        assert_same_clip(generate(wan, settings), alone)
    finally:
        handle.remove()
    assert_same_clip(nested[0], generate(wan, replace(settings, seed=1)))


def test_a_causal_decoder_needs_one_frame_more_than_whole_groups(wan):
    assert (default_settings(wan, "a red circle").frames - 1) % wan.pipeline.vae_scale_factor_temporal == 0
    with pytest.raises(GenerationError, match="frames = 6 must be one more than a multiple of 4; try 5"):
        check_settings(wan, replace(default_settings(wan, "a red circle"), frames=6))


def test_schedulers_that_draw_noise_draw_it_from_the_seed(model):
    """Pipelines hand the generator to a scheduler only if its step is seen to take one."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler.from_config(model.pipeline.scheduler.config)
    pipeline = type(model.pipeline)(**{**model.pipeline.components, "scheduler": scheduler})
    stochastic = VideoModel(model.spec, pipeline, model.denoiser_name, model.device)
    settings = default_settings(stochastic, "a red circle", steps=4, seed=3)
    assert_same_clip(generate(stochastic, settings), generate(stochastic, settings))
