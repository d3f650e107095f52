"""Calibration against ranges taken directly from raw activations of a separate run."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch import nn

from qvd_core.calibration.calibrate import calibrate, calibration_prompts, embedded_statistics
from qvd_core.errors import CalibrationError, Cancelled, GenerationError
from qvd_core.formats import ActivationFormat
from qvd_core.models.catalog import CATALOG
from qvd_core.models.loader import VideoModel, load
from qvd_core.models.sites import find_inputs
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.sampling import default_settings, generate, sample
from qvd_core.shapeworld.scene import HELD_OUT_SCENES, parse_caption
from qvd_core.variant import quantize, share_structure
from tests.closeness import assert_same, assert_same_clip

PROMPTS = ["a red circle moving left on a striped gray background", "a blue ring growing on a plain white background"]


@pytest.fixture
def own_model(tiny_folder, model) -> VideoModel:
    """A model of this test's own, to damage."""
    return VideoModel(model.spec, load(str(tiny_folder), device="cpu").pipeline, model.denoiser_name, model.device)


def raw_inputs(model: VideoModel, steps: int, seed: int) -> dict[str, dict[int, list[torch.Tensor]]]:
    """All inputs of every site by step, channels last, as a second implementation of what calibration sees."""
    inputs: dict[str, dict[int, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    step = [0]
    watched = share_structure(model.denoiser)
    for site in model.sites:

        def keep(_, args, kwargs, name=site.name, linear=site.kind == "linear"):
            x = args[0] if args else kwargs["input"]
            channels = x.shape[-1] if linear else x.shape[1]
            rows = x.reshape(-1, channels) if linear else x.transpose(0, 1).reshape(channels, -1).T
            inputs[name][step[0]].append(rows.clone())

        watched.get_submodule(site.name).register_forward_pre_hook(keep, with_kwargs=True)
    for number, prompt in enumerate(PROMPTS):
        step[0] = 0
        settings = default_settings(model, prompt, steps=steps, seed=seed + number)
        sample(model, watched, settings, lambda info: step.__setitem__(0, info.index + 1))
    return inputs


def test_ranges_are_those_of_the_raw_activations(model):
    statistics = calibrate(model, PROMPTS, steps=3, seed=5)
    inputs = raw_inputs(model, steps=3, seed=5)
    assert statistics.low.keys() == statistics.high.keys() == {site.name for site in model.sites}
    for site in model.sites:
        low, high = statistics.low[site.name], statistics.high[site.name]
        assert low.shape == high.shape == (3, site.in_channels)
        steps = [torch.cat(inputs[site.name][step]) for step in range(3)]
        everything = torch.cat(steps)
        assert_same(low.amin(0), everything.amin(0), f"low of {site.name}")
        assert_same(high.amax(0), everything.amax(0), f"high of {site.name}")
        slack = 1.001 / 255 * (everything.amax(0) - everything.amin(0)) + 1e-9  # rounded outwards
        for step, rows in enumerate(steps):
            for beyond in (rows.amin(0) - low[step], high[step] - rows.amax(0)):
                assert (beyond >= -slack / 200).all(), f"{site.name} at step {step}"
                assert (beyond <= slack).all(), f"{site.name} at step {step}"
        assert_same(statistics.tensor_range(site.name)[0], low.min())
        assert_same(statistics.tensor_range(site.name)[1], high.max())


def whole_inputs(
    model: VideoModel, prompts: list[str]
) -> tuple[dict[str, dict[int, list[torch.Tensor]]], list[set[str]]]:
    """All inputs of every site by step as they come, and which layers were given the same tensor in the first call."""
    inputs: dict[str, dict[int, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    readers: dict[int, set[str]] = defaultdict(set)
    alive: list[torch.Tensor] = []  # so that no two tensors share an identity
    step = [0]
    watched = share_structure(model.denoiser)
    for site in model.sites:

        def keep(_, args, kwargs, name=site.name):
            x = args[0] if args else kwargs["input"]
            if not inputs[name]:
                alive.append(x)
                readers[id(x)].add(name)
            inputs[name][step[0]].append(x.clone())

        watched.get_submodule(site.name).register_forward_pre_hook(keep, with_kwargs=True)
    for number, prompt in enumerate(prompts):
        step[0] = 0
        settings = default_settings(model, prompt, seed=1000 + number)
        sample(model, watched, settings, lambda info: step.__setitem__(0, info.index + 1))
    return inputs, list(readers.values())


@pytest.fixture(scope="module")
def watched_inputs(model):
    return whole_inputs(model, PROMPTS)


def test_layers_that_read_one_tensor_share_its_statistics(statistics, watched_inputs):
    """q, k and v of a self-attention; k and v of all text attentions, which read the same text."""
    groups = watched_inputs[1]
    assert sorted(map(len, groups))[-1] > 3
    for kind in ("low", "high", "tokens", "frame_low", "frame_high", "token_frames"):
        entries = getattr(statistics, kind)
        for group in groups:
            assert len({id(entries.get(name)) for name in group}) == 1, f"{kind} of {group}"
        tensors = {id(t) for t in entries.values()}
        assert len(tensors) == sum(any(name in entries for name in group) for group in groups)


def test_inputs_the_code_calls_shared_are_one_tensor(model, watched_inputs):
    """Of `find_inputs`, by which layers are transformed together."""
    for shared in find_inputs(model.denoiser, model.sites):
        assert any(group.issuperset(shared.consumers) for group in watched_inputs[1]), shared.consumers


def test_tokens_are_rows_of_the_step_they_are_filed_under(model, statistics, watched_inputs):
    for site in model.sites:
        tokens = statistics.tokens[site.name]
        for step in range(2):
            seen = torch.cat(watched_inputs[0][site.name][step])
            if tokens.shape[2] > 1:
                assert site.role == "temporal_attention"
                assert tokens.shape[1:] == (1, 4, site.in_channels)
                for sequence in tokens[step]:
                    assert (seen.half() == sequence.half()).all((1, 2)).any(), f"{site.name} at step {step}"
                continue
            assert site.role != "temporal_attention"
            assert tokens.shape[1:] == (4, 1, site.in_channels)
            rows = seen.flatten(0, -2) if site.kind == "linear" else seen.movedim(1, -1).flatten(0, -2)
            for token in tokens[step, :, 0]:
                assert (rows.half() == token.half()).all(1).any(), f"{site.name} at step {step}"


def test_every_clip_gives_tokens(model, statistics, watched_inputs):
    for name in ("conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"):
        for step in range(2):
            clips = watched_inputs[0][name][step]
            from_clip = [
                sum(
                    bool((clip.movedim(1, -1).flatten(0, -2).half() == token.half()).all(1).any())
                    for clip in clips[number::2]
                )
                for number in range(2)
                for token in [*statistics.tokens[name][step, :, 0]]
            ]
            assert sum(from_clip[:4]) == sum(from_clip[4:]) == 2, f"{name} at step {step}"


def test_tokens_and_extremes_of_frames(model, statistics, watched_inputs):
    """Guidance doubles the batch: the leading axis is two samples of four frames."""
    frames = statistics.run.frames
    mapped = {site.name for site in model.sites if not site.role.startswith(("temporal", "time"))}
    assert statistics.frame_low.keys() == statistics.frame_high.keys() == statistics.token_frames.keys() == mapped
    for site in model.sites:
        if site.name not in mapped:
            continue
        for step in range(2):
            seen = torch.cat(watched_inputs[0][site.name][step])
            assert len(seen) == 2 * 2 * frames
            for frame in range(frames):
                values = seen[frame::frames]
                assert statistics.frame_low[site.name][step, frame] == values.min(), site.name
                assert statistics.frame_high[site.name][step, frame] == values.max(), site.name
            for token, frame in zip(
                statistics.tokens[site.name][step, :, 0], statistics.token_frames[site.name][step], strict=True
            ):
                values = seen[int(frame) :: frames]
                rows = values.flatten(0, -2) if site.kind == "linear" else values.movedim(1, -1).flatten(0, -2)
                assert (rows.half() == token.half()).all(1).any(), (
                    f"{site.name}: the token is not of frame {int(frame)}"
                )


def test_extremes_of_channels_in_each_frame(model, statistics, watched_inputs):
    """Of layers that see frames one by one, and of those that mix them: [positions, frames, channels]."""
    frames = statistics.run.frames
    without = {"time_embedding", "temporal_features"}
    expected = {site.name for site in model.sites if site.role not in without}
    assert statistics.channel_frame_low.keys() == statistics.channel_frame_high.keys() == expected
    for site in model.sites:
        if site.name not in expected:
            continue
        seen = torch.cat([x for step in range(2) for x in watched_inputs[0][site.name][step]])
        if site.role.startswith("temporal"):
            by_frame = seen.movedim(1, 0).flatten(1, -2)
        else:
            rows = seen.flatten(1, -2) if site.kind == "linear" else seen.flatten(2).transpose(1, 2)
            by_frame = rows.unflatten(0, (-1, frames)).movedim(1, 0).flatten(1, 2)
        slack = 1.001 / 255 * (by_frame.amax((0, 1)) - by_frame.amin((0, 1))) + 1e-9
        low, high = statistics.channel_frame_low[site.name], statistics.channel_frame_high[site.name]
        for beyond in (by_frame.amin(1) - low, high - by_frame.amax(1)):
            assert (beyond >= -slack / 200).all(), site.name
            assert (beyond <= slack).all(), site.name


def test_a_large_model_is_watched_in_less_detail(model, monkeypatch):
    monkeypatch.setattr("qvd_core.calibration.statistics.TOKEN_VALUES", 20_000)
    monkeypatch.setattr("qvd_core.calibration.calibrate.FRAME_EXTREMES", 100)
    statistics = calibrate(model, PROMPTS, steps=5)
    assert statistics.token_stride > 1
    assert not statistics.channel_frame_low
    rows = -(-5 // statistics.token_stride)
    assert {tokens.shape[:2] for tokens in statistics.tokens.values()} == {(rows, 1)}
    for method in ("qvd", "tfmq-dm", "mse", "percentile"):
        quantize(model, get_recipe(f"{method}-w8a8"), statistics)
    by_step = ActivationFormat(8, "static_per_step", search="mse")
    quantize(model, Recipe("x", None, by_step), statistics)


def test_a_family_without_a_site_map_is_watched_too(wan):
    statistics = calibrate(wan, PROMPTS[:1])
    assert statistics.low.keys() == {site.name for site in wan.sites}
    assert not statistics.frame_low
    assert all(tokens.shape[2] == 1 for tokens in statistics.tokens.values())
    for name, tokens in statistics.tokens.items():  # all zero for text, most of which is padding
        assert (tokens >= statistics.low[name].half()[:, None, None]).all(), name
        assert (tokens <= statistics.high[name].half()[:, None, None]).all(), name


def test_calibrating_twice_gives_the_same(model, statistics):
    again = calibrate(model, PROMPTS)
    for kind in ("low", "high", "tokens", "frame_low", "frame_high", "token_frames"):
        for name, tensor in getattr(statistics, kind).items():
            assert_same(getattr(again, kind)[name], tensor, f"{kind} of {name}")


def test_steps_are_told_apart(statistics):
    """Temporal features depend on the step alone, so their ranges must differ between steps."""
    low = statistics.low["down_blocks.0.resnets.0.time_emb_proj"]
    assert not torch.equal(low[0], low[1])


def test_the_run_is_recorded(model, statistics):
    run = statistics.run
    assert (run.model, run.fingerprint, run.sampler) == (model.spec.name, model.fingerprint, "DDIMScheduler")
    assert (run.steps, run.seed, run.frames, run.height, run.width) == (2, 1000, 4, 16, 16)
    assert run.guidance_scale == model.spec.guidance_scale
    assert run.prompts == tuple(PROMPTS)


def test_multiply_accumulates_in_closed_form(model, statistics):
    """Of one call: guidance puts 2 clips of 4 frames of 8x8 latents into it."""
    sites = {site.name: site for site in model.sites}
    positions = 2 * 4 * 8 * 8
    assert statistics.macs["conv_in"] == positions * 3 * 3 * 4 * 16
    assert statistics.macs["conv_out"] == positions * 3 * 3 * 16 * 4
    assert statistics.macs["down_blocks.0.downsamplers.0.conv"] == positions // 4 * 3 * 3 * 16 * 16
    assert statistics.macs["time_embedding.linear_1"] == 2 * 16 * sites["time_embedding.linear_1"].out_channels
    query = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    assert statistics.macs[query] == positions * 16 * 16
    text = sites["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert statistics.macs[text.name] == 2 * 4 * 20 * text.in_channels * text.out_channels
    assert statistics.macs.keys() == sites.keys()


def test_the_model_is_left_without_hooks_and_unchanged(model, settings, reference):
    calibrate(model, PROMPTS[:1])
    for name, module in model.denoiser.named_modules():
        assert not module._forward_hooks, f"{name} still has a hook"
        assert not module._forward_pre_hooks, f"{name} still has a hook"
    assert_same_clip(generate(model, settings), reference)


def test_progress_covers_every_step_of_every_prompt(model):
    seen = []
    calibrate(model, PROMPTS, steps=2, on_step=lambda number, count, info: seen.append((number, count, info.index)))
    assert seen == [(0, 2, 0), (0, 2, 1), (1, 2, 0), (1, 2, 1)]


def test_cancelling_ends_the_run_and_leaves_no_hooks(model, settings, reference):
    seen = []

    def stop(number, count, info):
        seen.append((number, info.index))
        if number == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        calibrate(model, PROMPTS, steps=3, on_step=stop)
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert not any(module._forward_hooks for module in model.denoiser.modules())
    assert_same_clip(generate(model, settings), reference)


def test_no_prompts(model):
    with pytest.raises(CalibrationError, match="at least one prompt"):
        calibrate(model, [])


def test_a_wrong_prompt_is_refused_before_the_first_clip(model):
    seen = []
    with pytest.raises(GenerationError, match="The prompt is empty"):
        calibrate(model, [PROMPTS[0], " "], on_step=lambda *_: seen.append(1))
    assert not seen


def test_not_finite_activations_name_the_first_site_they_reach(own_model):
    own_model.denoiser.conv_in.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(CalibrationError, match=r"The input of down_blocks\.0\.\S+ contains NaN .* at step 1;"):
        calibrate(own_model, PROMPTS[:1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_not_finite_activations_name_the_step_they_begin_at(own_model, value):
    calls = []

    def spoil(module, args):
        calls.append(1)
        if len(calls) == 2:
            x = args[0].clone()
            x[0, 0, 0, 0] = value
            return (x, *args[1:])
        return None

    own_model.denoiser.conv_in.register_forward_pre_hook(spoil)
    with pytest.raises(CalibrationError, match=r"The input of conv_in contains NaN or infinite values at step 2;"):
        calibrate(own_model, PROMPTS[:1], steps=3)


def test_a_layer_that_never_runs_has_no_statistics(own_model):
    own_model.denoiser.unused = nn.Linear(2, 2)
    model = VideoModel(own_model.spec, own_model.pipeline, own_model.denoiser_name, own_model.device)
    statistics = calibrate(model, PROMPTS[:1])
    assert "unused" not in {*statistics.low, *statistics.high, *statistics.macs}
    with pytest.raises(CalibrationError, match="say nothing about unused, which calibration never ran"):
        quantize(model, get_recipe("minmax-w8a8"), statistics)


def test_prompts_of_an_embedded_model_are_training_captions(model):
    embedded = VideoModel(CATALOG["animatediff-mini"], model.pipeline, model.denoiser_name, model.device)
    prompts = calibration_prompts(embedded, 12)
    assert len(set(prompts)) == 12
    assert prompts[:5] == calibration_prompts(embedded, 5)
    held_out = {scene.caption for scene in HELD_OUT_SCENES}
    assert all(parse_caption(prompt) and prompt not in held_out for prompt in prompts)


def test_prompts_of_other_models_are_their_examples(model):
    assert calibration_prompts(model) == list(model.spec.example_prompts)


def test_shipped_statistics_belong_to_embedded_models_only(model, statistics, monkeypatch, tmp_path):
    from qvd_core.calibration import calibrate as module

    assert embedded_statistics(model) is None
    embedded = VideoModel(CATALOG["animatediff-mini"], model.pipeline, model.denoiser_name, model.device)
    path = tmp_path / "shipped.safetensors"
    monkeypatch.setattr(module, "statistics_path", lambda name: path)
    assert embedded_statistics(embedded) is None
    statistics.save(path)
    assert embedded_statistics(embedded).run == statistics.run
    replace(statistics, run=replace(statistics.run, fingerprint="f" * 16)).save(path)
    with pytest.raises(CalibrationError, match="calibrate again"):
        embedded_statistics(embedded)


def test_clips_have_the_size_that_was_asked_for(model):
    run = calibrate(model, ["a red circle"], steps=1, frames=2, height=8, width=16).run
    assert (run.frames, run.height, run.width) == (2, 8, 16)
