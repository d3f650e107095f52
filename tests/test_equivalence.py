"""Channel transformations change nothing in full precision: not at any site, in any family, whatever is folded.

Everything that quantizes is left out, so that what remains must be the model up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn

from qvd_core.calibration.calibrate import calibrate
from qvd_core.calibration.observer import InputObserver
from qvd_core.calibration.statistics import Statistics
from qvd_core.device import Device
from qvd_core.formats import ActivationFormat, ChannelBalancing, ShiftAndScale, WeightFormat
from qvd_core.layers.folded_norm import PositionedNorm
from qvd_core.layers.quantized import QuantizedLayer
from qvd_core.methods import at_sites
from qvd_core.models.loader import VideoModel, load
from qvd_core.models.sites import find_inputs
from qvd_core.quantizers.channel_transform import ChannelTransform
from qvd_core.recipe import Recipe
from qvd_core.variant import Variant, quantize, share_structure
from tests.denoiser_calls import recorded_calls

ALL = ("*",)
PROMPT = "a red circle"
SHIFT, SCALE = ShiftAndScale(scale=False, sites=ALL), ShiftAndScale(shift=False, sites=ALL)
BOTH, BALANCED = ShiftAndScale(sites=ALL), ChannelBalancing(sites=ALL)
methods = pytest.mark.parametrize(
    "method",
    [
        SHIFT,
        SCALE,
        BOTH,
        replace(BOTH, steps="first"),
        BALANCED,
        replace(BALANCED, strength=0.2),
        replace(BALANCED, strength=0.9),
    ],
    ids=["shift", "scale", "both", "first-step", "balanced", "little", "much"],
)


def transformed_only(model: VideoModel, statistics: Statistics, method: ShiftAndScale | ChannelBalancing) -> Variant:
    """Searched for 4 bits, so that thresholds are low and scales large; then inputs are not quantized after all."""
    variant = quantize(model, Recipe("x", None, ActivationFormat(4), channels=method), statistics)
    for module in variant.denoiser.modules():
        if isinstance(module, QuantizedLayer):
            module.quantize_input = None
    return variant


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def extreme_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any shift and scale in place of the searched ones: scales from a tenth to ten, and channels moved far."""
    generator = torch.Generator().manual_seed(0)

    def random_transform(centre: Tensor, half_width: Tensor, threshold: object) -> ChannelTransform:
        shift = 2 * torch.randn(len(centre), generator=generator)
        return ChannelTransform(shift, torch.exp(torch.randn(len(centre), generator=generator)))

    monkeypatch.setattr(at_sites, "transform_at", random_transform)


# AnimateDiff, tiny


@pytest.fixture(scope="module")
def call(model) -> Callable[[nn.Module], Tensor]:
    return recorded_calls(model, PROMPT)[0]


@methods
def test_all_sites_at_once(model, statistics, call, method):
    variant = transformed_only(model, statistics, method)
    assert set(variant.transforms) == {site.name for site in model.sites}
    assert relative_difference(call(variant.denoiser), call(model.denoiser)) < 1e-4
    moved = any(t.shift.any() for t in variant.transforms.values())
    scaled = [float(t.scale.max()) for t in variant.transforms.values()]
    assert moved is (isinstance(method, ShiftAndScale) and method.shift)
    assert (max(scaled) > 1.2) is (method is not SHIFT)


def test_all_sites_at_once_with_any_transformation(model, statistics, call, monkeypatch):
    extreme_transforms(monkeypatch)
    variant = quantize(model, Recipe("x", None, None, channels=SHIFT), statistics)
    assert relative_difference(call(variant.denoiser), call(model.denoiser)) < 1e-4


def test_site_by_site_with_any_transformation(model, statistics, call, monkeypatch):
    """So that no two errors hide each other; all layers that read the site's input are transformed with it."""
    extreme_transforms(monkeypatch)
    expected = call(model.denoiser)
    wrong, seen = {}, set()
    for shared in find_inputs(model.denoiser, model.sites):
        method = ShiftAndScale(scale=False, sites=shared.consumers[-1:])
        variant = quantize(model, Recipe("x", None, None, channels=method), statistics)
        assert set(variant.transforms) == set(shared.consumers)
        difference = relative_difference(call(variant.denoiser), expected)
        if not difference < 1e-4:
            wrong[shared.consumers] = difference
        seen |= variant.transforms.keys()
    assert not wrong
    assert seen == {site.name for site in model.sites}


def test_norms_make_what_they_can(model, statistics):
    """Temporal attention by LayerNorm and positions, spatial layers by their norms; only the rest divides itself."""
    variant = quantize(model, Recipe("x", None, None, channels=SHIFT), statistics)
    expected = {n for shared in find_inputs(model.denoiser, model.sites) if shared.norm for n in shared.consumers}
    assert variant.folded == expected
    roles = {site.name: site.role for site in model.sites}
    assert {name for name, role in roles.items() if role == "temporal_attention"} <= variant.folded
    for name, layer in variant.denoiser.named_modules():
        if isinstance(layer, QuantizedLayer):
            assert (layer.input_scale is None) is (name in variant.folded), name


def test_each_norm_of_a_motion_block_has_positions_of_its_own(model, statistics, call):
    """One attention transformed, the other not: the shared table may serve neither as it was."""
    site = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_k"
    variant = quantize(model, Recipe("x", None, None, channels=replace(SHIFT, sites=(site,))), statistics)
    block = variant.denoiser.get_submodule(site.removesuffix(".attn2.to_k"))
    assert block.pos_embed is None
    assert isinstance(block.norm1, PositionedNorm)
    assert isinstance(block.norm2, PositionedNorm)
    original = model.denoiser.get_submodule(site.removesuffix(".attn2.to_k"))
    assert original.pos_embed is not None
    assert isinstance(original.norm1, nn.LayerNorm)
    assert block.norm1.norm.weight is original.norm1.weight
    assert relative_difference(call(variant.denoiser), call(model.denoiser)) < 1e-5


def test_a_norm_without_weights_leaves_the_work_to_the_layer(tiny_folder, model, call):
    own = own_model(tiny_folder, model)
    block = own.denoiser.down_blocks[0].motion_modules[0].transformer_blocks[0]
    block.norm1 = nn.LayerNorm(block.norm1.normalized_shape, elementwise_affine=False)
    statistics = calibrate(own, [PROMPT])
    variant = transformed_only(own, statistics, BOTH)
    name = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    assert name in variant.transforms
    assert name not in variant.folded
    assert relative_difference(call(variant.denoiser), call(own.denoiser)) < 1e-4


def own_model(folder, model) -> VideoModel:
    """The tiny model again, to be damaged."""
    return VideoModel(model.spec, load(str(folder), device="cpu").pipeline, model.denoiser_name, model.device)


@pytest.mark.parametrize("method", [BOTH, BALANCED], ids=["shift-and-scale", "balanced"])
def test_convolutions_of_several_groups(tiny_folder, model, call, method):
    own = own_model(tiny_folder, model)
    torch.manual_seed(0)
    own.denoiser.mid_block.resnets[0].conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=4).requires_grad_(False)
    own = VideoModel(own.spec, own.pipeline, own.denoiser_name, own.device)
    variant = transformed_only(own, calibrate(own, [PROMPT]), method)
    assert relative_difference(call(variant.denoiser), call(own.denoiser)) < 1e-4


def test_padding_far_from_a_shifted_channel_is_not_clipped(tiny_folder, model):
    """Zeros around an image are inputs too: a grid around channels near 40 alone would make something else of them."""
    own = own_model(tiny_folder, model)
    own.denoiser.mid_block.resnets[0].norm2.bias += 40
    statistics = calibrate(own, [PROMPT])
    assert statistics.low["mid_block.resnets.0.conv2"].min() > 10
    call = recorded_calls(own, PROMPT, seed=statistics.run.seed)[0]  # whose values the recorded extremes contain
    expected = call(own.denoiser)
    variant = quantize(own, Recipe("x", None, ActivationFormat(16), channels=SHIFT), statistics)
    assert relative_difference(call(variant.denoiser), expected) < 1e-2


# The embedded model


@pytest.fixture(scope="module")
def mini_call(mini) -> Callable[[nn.Module], Tensor]:
    small = VideoModel(
        replace(mini.spec, frames=4, height=32, width=32), mini.pipeline, mini.denoiser_name, mini.device
    )
    return recorded_calls(small, PROMPT)[0]


@pytest.mark.parametrize("method", [SHIFT, BOTH, BALANCED], ids=["shift", "both", "balanced"])
def test_all_sites_of_the_embedded_model(mini, mini_statistics, mini_call, method):
    variant = transformed_only(mini, mini_statistics, method)
    assert set(variant.transforms) == {site.name for site in mini.sites}
    assert relative_difference(mini_call(variant.denoiser), mini_call(mini.denoiser)) < 1e-4


def test_the_embedded_model_with_any_transformation(mini, mini_statistics, mini_call, monkeypatch):
    extreme_transforms(monkeypatch)
    expected = mini_call(mini.denoiser)
    for sites in (ALL, ("temporal_attention",), ("temporal_feed_forward",), ("*.proj_in",)):
        method = ShiftAndScale(scale=False, sites=sites)
        variant = quantize(mini, Recipe("x", None, None, channels=method), mini_statistics)
        assert relative_difference(mini_call(variant.denoiser), expected) < 1e-4, sites


# Families without a site map


@pytest.mark.parametrize("family", ["wan", "ltx"])
@pytest.mark.parametrize("method", [BOTH, BALANCED], ids=["shift-and-scale", "balanced"])
def test_other_families(request, family, method):
    model = request.getfixturevalue(family)
    statistics = calibrate(model, [PROMPT])
    variant = transformed_only(model, statistics, method)
    assert set(variant.transforms) == {site.name for site in model.sites}
    assert not variant.folded
    call = recorded_calls(model, PROMPT)[0]
    assert relative_difference(call(variant.denoiser), call(model.denoiser)) < 1e-4


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_other_families_with_any_transformation(request, family, monkeypatch):
    extreme_transforms(monkeypatch)
    model = request.getfixturevalue(family)
    variant = quantize(model, Recipe("x", None, None, channels=SHIFT), calibrate(model, [PROMPT]))
    call = recorded_calls(model, PROMPT)[0]
    assert relative_difference(call(variant.denoiser), call(model.denoiser)) < 1e-4


@pytest.mark.parametrize("method", [SHIFT, BOTH, BALANCED], ids=["shift", "both", "balanced"])
def test_a_network_of_padded_convolutions_in_space_and_time(statistics, method):
    """UNet3DConditionModel; its pipeline is of an older kind, so the network is called by itself."""
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    unet.eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if ".conv4." in name:  # zero when new, and then nothing of a temporal convolution could be wrong
            nn.init.normal_(parameter, std=0.1)
    pipeline = SimpleNamespace(unet=unet, scheduler=DDIMScheduler())
    model = VideoModel(replace(tiny_spec(), name="unet3d"), pipeline, "unet", Device("cpu", "chosen by the test"))
    inputs = torch.randn(2, 4, 3, 8, 8), torch.tensor(7), torch.randn(2, 5, 16)

    observers = {s.name: InputObserver(s.name, s.kind, 1, s.in_channels) for s in model.sites}
    watched = share_structure(unet)
    for name, observer in observers.items():
        watched.get_submodule(name).register_forward_hook(
            lambda _, args, kwargs, out, observer=observer: observer.observe(args[0] if args else kwargs["input"], 0),
            with_kwargs=True,
        )
    watched(*inputs)
    observed = Statistics(
        replace(statistics.run, fingerprint=model.fingerprint, steps=1),
        *({n: o.entries()[kind] for n, o in observers.items()} for kind in ("low", "high")),
        {},
        {},
        {n: o.entries()["tokens"] for n, o in observers.items()},
        {},
        {},
    )
    variant = transformed_only(model, observed, method)
    assert {"conv1d", "conv2d", "conv3d", "linear"} >= {s.kind for s in model.sites} >= {"conv2d", "conv3d", "linear"}
    expected = unet(*inputs).sample
    assert relative_difference(variant.denoiser(*inputs).sample, expected) < 1e-4


def tiny_spec():
    from qvd_core.models.catalog import CATALOG

    return CATALOG["animatediff-mini"]


def test_quantized_weights_see_the_folded_ones(model, statistics):
    """Order matters: channels first, then weights."""
    recipe = Recipe("x", WeightFormat(4), None, channels=SHIFT)
    plain = Recipe("x", WeightFormat(4), None)
    balanced = quantize(model, replace(recipe, channels=BALANCED), statistics).denoiser.conv_in
    assert not torch.equal(balanced.codes, quantize(model, plain, statistics).denoiser.conv_in.codes)
    shifted = quantize(model, recipe, statistics).denoiser.conv_in
    assert torch.equal(shifted.codes, quantize(model, plain, statistics).denoiser.conv_in.codes)
