"""Every quantizable layer is a site with the right role, shape and block."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import nn

from qvd_core.models.sites import LAYER_KINDS, SharedInput, find_inputs, find_sites, has_site_map
from qvd_core.models.unet_motion import ROLE_PATTERNS


def test_all_linear_layers_and_convolutions_are_sites_once(model):
    expected = [name for name, module in model.denoiser.named_modules() if type(module) in LAYER_KINDS]
    assert [site.name for site in model.sites] == expected
    assert len(set(expected)) == len(expected) > 100


def test_every_role_of_the_family_occurs_and_none_is_generic(model):
    assert model.mapped
    assert {site.role for site in model.sites} == {role for _, role in ROLE_PATTERNS}


ONE_SITE_PER_ROLE = {
    "time_embedding": "time_embedding.linear_2",
    "temporal_features": "down_blocks.1.resnets.0.time_emb_proj",
    "temporal_projection": "mid_block.motion_modules.0.proj_out",
    "temporal_attention": "up_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_k",
    "temporal_attention_output": "up_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_out.0",
    "temporal_feed_forward": "down_blocks.0.motion_modules.0.transformer_blocks.0.ff.net.0.proj",
    "spatial_projection": "mid_block.attentions.0.proj_in",
    "spatial_attention": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v",
    "spatial_attention_output": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "text_attention": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
    "text_attention_output": "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "spatial_feed_forward": "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2",
    "first_layer": "conv_in",
    "last_layer": "conv_out",
    "residual_convolution": "mid_block.resnets.1.conv2",
    "shortcut_convolution": "up_blocks.0.resnets.0.conv_shortcut",
    "resampling_convolution": "down_blocks.0.downsamplers.0.conv",
}


@pytest.mark.parametrize(("role", "name"), ONE_SITE_PER_ROLE.items(), ids=ONE_SITE_PER_ROLE)
def test_roles(model, role, name):
    assert {site.name: site.role for site in model.sites}[name] == role


def test_one_temporal_attention_site_per_projection(model):
    """Two attentions of three input projections in each motion module."""
    modules = {site.name.split(".transformer_blocks")[0] for site in model.sites if ".motion_modules." in site.name}
    modules = {name for name in modules if not name.endswith(("proj_in", "proj_out"))}
    roles = Counter(site.role for site in model.sites)
    assert roles["temporal_attention"] == 6 * len(modules)
    assert roles["temporal_attention_output"] == 2 * len(modules)
    assert roles["temporal_projection"] == 2 * len(modules)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("conv_in", ""),
        ("time_embedding.linear_1", ""),
        ("mid_block.resnets.0.conv1", "mid_block"),
        ("down_blocks.1.resnets.0.conv1", "down_blocks.1"),
        ("up_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q", "up_blocks.0"),
    ],
)
def test_blocks(model, name, block):
    assert {site.name: site.block for site in model.sites}[name] == block


def test_sizes_are_those_of_the_layers(model):
    for site in model.sites:
        layer = model.denoiser.get_submodule(site.name)
        assert site.out_channels == layer.weight.shape[0]
        assert site.in_channels == layer.weight.shape[1]
        assert site.parameters == sum(p.numel() for p in layer.parameters())
        assert site.has_bias == (layer.bias is not None)
        assert site.kind == {nn.Linear: "linear", nn.Conv2d: "conv2d"}[type(layer)]


def test_a_family_without_a_map_has_generic_roles(wan):
    assert not wan.mapped
    assert not has_site_map(wan.denoiser)
    roles = {site.name: (site.role, site.kind) for site in wan.sites}
    assert roles["patch_embedding"] == ("first_layer", "conv3d")
    assert roles["proj_out"] == ("last_layer", "linear")
    assert roles["blocks.0.attn1.to_q"] == ("linear", "linear")
    assert {site.block for site in wan.sites} == {"", "blocks.0", "blocks.1"}


def test_other_layers_are_no_sites():
    """Neither transposed convolutions nor classes derived from Linear, whose forward may do anything."""

    class Clever(nn.Linear):
        pass

    network = nn.Sequential(nn.ConvTranspose2d(2, 2, 1), Clever(2, 2), nn.Embedding(2, 2), nn.Linear(3, 2, bias=False))
    (site,) = find_sites(network)
    assert (site.name, site.role, site.has_bias, site.parameters) == ("3", "linear", False, 6)


def test_every_site_reads_exactly_one_input(model, wan):
    for some in (model, wan):
        readers = [name for shared in find_inputs(some.denoiser, some.sites) for name in shared.consumers]
        assert sorted(readers) == sorted(site.name for site in some.sites)
        assert len(set(readers)) == len(readers)


def test_inputs_that_layers_share_and_the_norms_that_make_them(model):
    spatial = "up_blocks.1.attentions.0.transformer_blocks.0"
    temporal = "up_blocks.1.motion_modules.0.transformer_blocks.0"
    inputs = find_inputs(model.denoiser, model.sites)
    for expected in (
        SharedInput(tuple(f"{spatial}.attn1.to_{x}" for x in "qkv"), f"{spatial}.norm1"),
        SharedInput((f"{spatial}.attn2.to_q",), f"{spatial}.norm2"),
        SharedInput((f"{spatial}.attn2.to_k", f"{spatial}.attn2.to_v"), None),
        SharedInput((f"{spatial}.ff.net.0.proj",), f"{spatial}.norm3"),
        SharedInput((f"{spatial}.ff.net.2",), None),
        SharedInput(tuple(f"{temporal}.attn1.to_{x}" for x in "qkv"), f"{temporal}.norm1"),
        SharedInput(tuple(f"{temporal}.attn2.to_{x}" for x in "qkv"), f"{temporal}.norm2"),
        SharedInput((f"{temporal}.ff.net.0.proj",), f"{temporal}.norm3"),
        SharedInput(("up_blocks.1.attentions.0.proj_in",), "up_blocks.1.attentions.0.norm"),
        SharedInput(("up_blocks.1.motion_modules.0.proj_in",), "up_blocks.1.motion_modules.0.norm"),
        SharedInput(("conv_in",), None),
        SharedInput(("up_blocks.0.resnets.0.conv1",), None),  # an activation comes between
    ):
        assert expected in inputs
    for shared in inputs:
        if shared.norm is not None:
            assert isinstance(model.denoiser.get_submodule(shared.norm), nn.LayerNorm | nn.GroupNorm)


def test_inputs_of_an_unknown_family_are_not_shared(wan):
    assert all(len(i.consumers) == 1 and i.norm is None for i in find_inputs(wan.denoiser, wan.sites))


def test_which_sites_see_frames_one_by_one(model, wan):
    """The spatial half of the UNet; motion modules see them side by side, the time path none."""
    for site in model.sites:
        expected = "motion_modules" not in site.name and "time_" not in site.name
        assert site.sees_frames is expected, site.name
    assert not any(site.sees_frames for site in wan.sites)
