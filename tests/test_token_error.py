"""The error of single layers on sampled tokens, against formulas written out in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qvd_core.errors import CalibrationError
from qvd_core.formats import ActivationFormat, Override, ShiftAndScale, WeightFormat
from qvd_core.recipe import Recipe, get_recipe
from qvd_core.site_error import site_errors
from qvd_core.token_error import token_errors
from qvd_core.variant import quantize


def site_of(model, role: str) -> str:
    return next(site.name for site in model.sites if site.role == role)


def on_grid(x, low, high, bits: int, symmetric: bool):
    """Uniform quantization in double precision; `low` and `high` broadcast against `x`."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if symmetric:
        least, most, zero = -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1, 0
        scale = np.maximum(-low, high) / most
    else:
        least, most = 0, 2**bits - 1
        scale = (high - low) / most
        zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, least, most) - zero) * scale


@pytest.mark.parametrize(
    ("role", "recipe"),
    [
        ("temporal_attention", "minmax-w4a4"),
        ("temporal_attention", "dynamic-w4a4"),
        ("spatial_feed_forward", "minmax-w4a8"),
        ("residual_convolution", "minmax-w4a4"),
    ],
)
def test_against_numpy(model, statistics, role, recipe):
    name, recipe = site_of(model, role), get_recipe(recipe)
    layer = model.denoiser.get_submodule(name)
    weight = layer.weight.detach().double().numpy()
    weight = weight.reshape(*weight.shape[:2], -1)  # [out, in, taps]
    x = statistics.tokens[name].flatten(0, 2).double().numpy()
    if recipe.activations.range == "dynamic_per_token":
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    else:
        low, high = (end.item() for end in statistics.tensor_range(name))
    w = on_grid(weight, weight.min((1, 2), keepdims=True), weight.max((1, 2), keepdims=True), recipe.weights.bits, True)
    made = np.einsum("nc,oct->not", on_grid(x, low, high, recipe.activations.bits, False), w)
    exact = np.einsum("nc,oct->not", x, weight)
    error = np.square(made - exact).sum()
    if layer.weight.dim() == 2 and layer.bias is not None:
        exact = exact + layer.bias.detach().double().numpy()[:, None]
    found = token_errors(quantize(model, recipe, statistics), statistics, [name])
    # Weights come from fp16, so some lie between two codes, and fp32 may round them the other way.
    assert found[name] == pytest.approx(error / np.square(exact).sum(), rel=1e-2)


@pytest.mark.parametrize(
    "recipe",
    ["minmax-w8a8", "dynamic-w8a8", "qvd-w8a8", "q-diffusion-w8a8", "tfmq-dm-w8a8", "smoothquant-w8a8", "os-plus-w8a8"],
)
def test_fewer_bits_err_more(model, statistics, recipe):
    """By roughly the sixteenfold that two bits are, on every way to quantize."""
    few, many = (
        token_errors(quantize(model, replace(get_recipe(recipe), name="x", **formats), statistics), statistics)
        for formats in (
            {
                "weights": WeightFormat(b),
                "activations": replace(get_recipe(recipe).activations, bits=b),
                "overrides": (),
            }
            for b in (5, 7)
        )
    )
    assert few.keys() == {site.name for site in model.sites}
    ratios = [few[name] / many[name] for name in few]
    assert 8 < np.median(ratios) < 32
    assert min(few.values()) > 0


@pytest.mark.parametrize("channels", [None, ShiftAndScale(sites=("*",))], ids=["plain", "transformed"])
@pytest.mark.parametrize("form", ["static_per_tensor", "static_per_frame", "static_per_step", "dynamic_per_token"])
def test_sixteen_bits_are_next_to_none(model, statistics, form, channels):
    """Whatever the grid, and transformed or not: an equivalent transformation is no error."""
    recipe = Recipe("x", None, ActivationFormat(16, form), channels=channels)
    errors = token_errors(quantize(model, recipe, statistics), statistics)
    assert max(errors.values()) < 1e-6


def test_it_is_the_error_layers_make_while_sampling(model, statistics, settings):
    """Of linear layers, as far as a few tokens of two steps can tell: within a factor of two, most of them."""
    variant = quantize(model, get_recipe("minmax-w4a8"), statistics)
    while_sampling = site_errors(variant, settings)
    estimated = token_errors(variant, statistics)
    ratios = [
        estimated[site.name] / float(while_sampling[site.name].mean()) for site in model.sites if site.kind == "linear"
    ]
    assert 0.7 < np.median(ratios) < 1.4
    assert np.mean([0.5 < ratio < 2 for ratio in ratios]) > 0.9


def test_layers_left_alone_and_tables_make_no_error(model, statistics):
    recipe = replace(get_recipe("tabulated-w4a4"), name="x", overrides=(Override("temporal_attention", None, None),))
    errors = token_errors(quantize(model, recipe, statistics), statistics)
    for site in model.sites:
        exact = site.role in ("temporal_attention", "temporal_features", "time_embedding")
        assert (errors[site.name] == 0) is exact, site.name


def test_grouped_convolutions():
    """Each group of outputs sees its own channels: as two layers side by side."""
    from qvd_core.token_error import _by_tap, _outputs

    layer = torch.nn.Conv2d(6, 4, 3, groups=2)
    x = torch.randn(5, 6)
    whole = _outputs(x, _by_tap(layer.weight, layer))
    assert whole.shape == (5, 2, 2, 9)
    for number in range(2):
        part = torch.einsum("nc,oct->not", x[:, 3 * number :][:, :3], layer.weight[2 * number :][:2].flatten(2))
        torch.testing.assert_close(whole[:, number], part)


def test_silent_statistics_are_refused(model, statistics):
    name = site_of(model, "temporal_attention")
    silent = replace(statistics, tokens={n: t for n, t in statistics.tokens.items() if n != name})
    with pytest.raises(CalibrationError, match=f"say nothing about {name}"):
        token_errors(quantize(model, get_recipe("dynamic-w4a4")), silent)


def test_where_all_tokens_are_zero_the_extremes_stand_for_them(model, statistics):
    """As where most of a text is padding: an error of nothing would be believed."""
    name = site_of(model, "text_attention")
    silent = replace(statistics, tokens=statistics.tokens | {name: torch.zeros_like(statistics.tokens[name])})
    found = token_errors(quantize(model, get_recipe("dynamic-w4a8")), silent, [name])[name]
    x = torch.cat([statistics.low[name], statistics.high[name]])
    replaced = replace(statistics, tokens=statistics.tokens | {name: x[None, :, None]})
    assert found > 0
    assert found == pytest.approx(token_errors(quantize(model, get_recipe("dynamic-w4a8")), replaced, [name])[name])


def test_tokens_of_every_third_step_are_put_on_the_grids_of_their_steps(model, statistics):
    from qvd_core.token_error import _Tokens

    name = site_of(model, "residual_convolution")
    low, high = (ends[name][:1] * torch.arange(1, 8)[:, None] for ends in (statistics.low, statistics.high))
    tokens = statistics.tokens[name][:1].repeat(3, 1, 1, 1)
    thinned = replace(statistics, low={name: low}, high={name: high}, tokens={name: tokens}, token_stride=3)
    variant = quantize(model, get_recipe("dynamic-w4a4"))
    found = _Tokens(variant, thinned, name, torch.device("cpu"))
    assert found.step.tolist() == [step for step in (0, 3, 6) for _ in range(tokens.shape[1])]
    made = found.on_grid(variant.denoiser.get_submodule(name).quantize_input).unflatten(0, (3, -1)).double().numpy()
    for row, step in enumerate((0, 3, 6)):
        expected = on_grid(tokens[row].flatten(0, 1).double().numpy(), low[step].min(), high[step].max(), 4, False)
        np.testing.assert_allclose(made[row], expected, rtol=1e-5, atol=1e-6)
