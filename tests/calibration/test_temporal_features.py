"""Temporal features, enumerated, against what every time_emb_proj receives while the network really runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet3DConditionModel, UNetMotionModel
from torch import Tensor, nn

from qvd_core.calibration.temporal_features import temporal_features
from qvd_core.device import Device
from qvd_core.errors import CalibrationError
from qvd_core.models.catalog import CATALOG
from qvd_core.models.loader import VideoModel

FRAMES, SIDE, TEXT = 2, 8, 16


def motion_unet(**changes: Any) -> UNetMotionModel:
    torch.manual_seed(0)
    return UNetMotionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        **changes,
    ).eval()


def model_of(denoiser: nn.Module, scheduler: Any = None) -> VideoModel:
    """Only what the enumeration reads of a pipeline: its denoiser and its scheduler."""
    pipeline = SimpleNamespace(unet=denoiser, scheduler=scheduler or DDIMScheduler())
    spec = replace(CATALOG["animatediff-mini"], name="tiny")
    return VideoModel(spec, pipeline, "unet", Device("cpu", "chosen by the test"))


def received(unet: UNetMotionModel, timesteps: Tensor) -> dict[str, list[Tensor]]:
    """Per layer, the inputs of every time_emb_proj, [batch x frames, C] each, while `unet` runs at `timesteps`."""
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].clone()))
        for name, layer in unet.named_modules()
        if name.endswith("time_emb_proj")
    ]
    generator = torch.Generator().manual_seed(1)
    for t in timesteps:
        noise = torch.randn(1, 4, FRAMES, SIDE, SIDE, generator=generator)
        text = torch.randn(FRAMES, 3, TEXT, generator=generator)
        with torch.no_grad():
            unet(noise, t, encoder_hidden_states=text)
    for handle in handles:
        handle.remove()
    return inputs


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler], ids=lambda kind: kind.__name__)
def test_every_layer_receives_them_at_every_step(scheduler: Any) -> None:
    unet, steps = motion_unet(), 4
    features = temporal_features(model_of(unet, scheduler()), steps)
    sampler = scheduler()
    sampler.set_timesteps(steps)
    assert torch.equal(features.timesteps, sampler.timesteps.float())

    inputs = received(unet, sampler.timesteps)
    sites = [site.name for site in model_of(unet).sites if site.role == "temporal_features"]
    assert sorted(inputs) == sorted(sites)
    assert len(sites) == 8  # two blocks down, two in the middle, four up
    for name, seen in inputs.items():
        assert len(seen) == steps
        for step, x in enumerate(seen):
            expected = features.values[step].expand(FRAMES, -1)
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_they_are_silu_of_the_time_embedding() -> None:
    unet = motion_unet()
    features = temporal_features(model_of(unet), 3)
    with torch.no_grad():
        expected = nn.functional.silu(unet.time_embedding(unet.time_proj(features.timesteps)))
    torch.testing.assert_close(features.values, expected)
    assert features.values.dtype == torch.float32
    assert features.values.shape == (3, 32)
    assert features.values.min() > -0.2785


def test_a_real_sampling_run_meets_them(model: VideoModel) -> None:
    """Guidance doubles the batch and frames repeat it; the features stay those enumerated."""
    from qvd_core.sampling import default_settings, sample
    from qvd_core.variant import share_structure

    watched = share_structure(model.denoiser)
    name = next(site.name for site in model.sites if site.role == "temporal_features")
    seen: list[Tensor] = []
    watched.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    settings = default_settings(model, model.spec.example_prompts[0], steps=3)
    sample(model, watched, settings)
    features = temporal_features(model, 3)
    assert len(seen) == 3
    for x, feature in zip(seen, features.values, strict=True):
        torch.testing.assert_close(x, feature.expand(len(x), -1), rtol=1e-5, atol=1e-6)


def test_the_model_and_its_scheduler_stay_as_they_were() -> None:
    model = model_of(motion_unet())
    model.pipeline.scheduler.set_timesteps(7)
    before = model.pipeline.scheduler.timesteps.clone()
    weights = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    temporal_features(model, 3)
    assert torch.equal(model.pipeline.scheduler.timesteps, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.denoiser.state_dict().items())


def test_half_precision_models_give_single_precision_features() -> None:
    features = temporal_features(model_of(motion_unet().to(torch.bfloat16)), 3)
    assert features.values.dtype == torch.float32


def test_other_unets_are_enumerated_as_they_receive_it() -> None:
    """A family without a site map: what every time_emb_proj of a 3-D UNet gets at each step of a run."""
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).eval()
    features = temporal_features(model_of(unet), 5)
    seen: dict[str, torch.Tensor] = {}
    for name, module in unet.named_modules():
        if name.endswith("time_emb_proj"):
            module.register_forward_pre_hook(lambda layer, args, name=name: seen.__setitem__(name, args[0]))
    for timestep, expected in zip(features.timesteps, features.values, strict=True):
        with torch.no_grad():
            unet(torch.randn(1, 4, 2, 8, 8), timestep, torch.randn(1, 3, 8))
        assert len(seen) == 8
        for received in seen.values():
            torch.testing.assert_close(received, expected.expand_as(received))


def test_models_without_temporal_features_are_refused_with_what_to_do(wan) -> None:
    with pytest.raises(CalibrationError, match=r"\(WanTransformer3DModel\) has no layers known .* Choose such a model"):
        temporal_features(wan, 3)


def test_embeddings_that_hold_more_than_the_time_are_refused() -> None:
    unet = motion_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64
    )
    with pytest.raises(CalibrationError, match="add_embedding"):
        temporal_features(model_of(unet), 3)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True], ids=repr)
def test_steps_out_of_range(steps: Any) -> None:
    with pytest.raises(CalibrationError, match=r"choose a whole number from 1 to 1000"):
        temporal_features(model_of(motion_unet()), steps)
