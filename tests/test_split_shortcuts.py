"""Split shortcuts: where the tensors were joined, and each part on grids of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNetMotionModel

from qvd_core.formats import (
    ActivationFormat,
    ShiftAndScale,
    WeightFormat,
)
from qvd_core.layers.inputs import (
    StaticSplit,
)
from qvd_core.models.sites import shortcut_split
from qvd_core.quantizers.uniform import fake_quantize, make_grid
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.variant import quantize, share_structure
from tests.closeness import assert_close, assert_same
from tests.variants import difference, layer_of, own_quantizer


def shortcuts(model):
    return [site.name for site in model.sites if site.name.startswith("up_blocks") and "conv_shortcut" in site.name]


def test_a_shortcut_is_split_where_the_tensors_were_joined(model):
    assert_split_where_joined(model.denoiser)


def test_a_shortcut_of_the_embedded_model_is_split_where_the_tensors_were_joined(mini):
    assert_split_where_joined(mini.denoiser)


def test_a_shortcut_is_split_right_where_every_level_has_another_width():
    unet = UNetMotionModel(
        sample_size=8,
        block_out_channels=(4, 8, 12, 20),
        down_block_types=("DownBlockMotion",) * 4,
        up_block_types=("UpBlockMotion",) * 4,
        layers_per_block=2,
        norm_num_groups=2,
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
    ).eval()
    assert_split_where_joined(unet)


def call_of(denoiser):
    """Two frames of noise at some step."""
    width = denoiser.config.cross_attention_dim
    with torch.no_grad():
        denoiser(
            torch.randn(1, denoiser.config.in_channels, 2, 8, 8),
            torch.tensor(7),
            encoder_hidden_states=torch.randn(2, 3, width),
        )


def assert_split_where_joined(denoiser) -> None:
    """The leading channels are what the layer before gave, the rest what was skipped; watched while it runs."""
    watched = share_structure(denoiser)
    before, last = {}, "mid_block"
    for block, up in enumerate(watched.up_blocks):
        for number in range(len(up.resnets)):
            name = f"up_blocks.{block}.resnets.{number}.conv_shortcut"
            before[name] = f"up_blocks.{block}.motion_modules.{number - 1}" if number else last
        last = f"up_blocks.{block}"
    joined, outputs = {}, {}
    for name, source in before.items():
        watched.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: joined.__setitem__(name, args[0].clone())
        )
        watched.get_submodule(source).register_forward_hook(
            lambda _, args, out, source=source: outputs.__setitem__(source, out.clone())
        )
    call_of(watched)
    shortcuts = [name for name, _ in denoiser.named_modules() if name.startswith("up") and "conv_shortcut" in name]
    assert sorted(before) == sorted(shortcuts)
    for name, source in before.items():
        x, split = joined[name], shortcut_split(denoiser, name)
        assert 0 < split < x.shape[1]
        assert_same(x[:, :split], outputs[source], name)


def test_only_shortcuts_of_the_way_up_are_split(model, wan):
    assert {site.name for site in model.sites if shortcut_split(model.denoiser, site.name)} == set(shortcuts(model))
    assert not any(shortcut_split(wan.denoiser, site.name) for site in wan.sites)


def test_both_halves_of_a_shortcut_are_quantized_apart(model, statistics):
    variant = quantize(model, replace(get_recipe("q-diffusion-w4a4"), activations=ActivationFormat(4)), statistics)
    for name in shortcuts(model):
        layer, split = layer_of(variant, name), shortcut_split(model.denoiser, name)
        original = model.denoiser.get_submodule(name).weight
        quantizer = own_quantizer(layer)
        assert isinstance(quantizer, StaticSplit)
        x = 3 * torch.randn(2, original.shape[1], 4, 4, generator=torch.Generator().manual_seed(0))
        for part in (slice(split), slice(split, None)):
            alone = make_grid(original[:, part].amin((1, 2, 3)), original[:, part].amax((1, 2, 3)), 4, False)
            scale, zero = alone.scale.view(-1, 1, 1, 1), alone.zero_point.view(-1, 1, 1, 1)
            weight = fake_quantize(original[:, part], replace(alone, scale=scale, zero_point=zero))
            assert_close(layer.weight[:, part], weight, 1e-6, name)
            low, high = statistics.low[name][:, part].min(), statistics.high[name][:, part].max()
            assert_same(quantizer(x)[:, part], fake_quantize(x[:, part], make_grid(low, high, 4, False)), name)
    others = {site.name for site in model.sites} - set(shortcuts(model))
    assert not any(isinstance(own_quantizer(layer_of(variant, name)), StaticSplit) for name in others)


@pytest.mark.parametrize("channels", [None, ShiftAndScale(sites=("*",))], ids=["plain", "transformed"])
@pytest.mark.parametrize("kind", ["static_per_tensor", "static_per_frame", "static_per_step", "dynamic_per_token"])
def test_split_shortcuts_beside_everything_else(model, statistics, call, kind, channels):
    activations = ActivationFormat(8, kind)
    recipe = Recipe("x", WeightFormat(8), activations, channels=channels, split_shortcuts=True)
    assert difference(call(quantize(model, recipe, statistics).denoiser), call(model.denoiser)) < 0.5
