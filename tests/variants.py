"""What tests of quantized variants share: how to reach a layer, and how far two outputs are apart."""

from __future__ import annotations

import pytest

from qvd_core.layers.inputs import OncePerInput
from qvd_core.recipe import METHODS

PROMPT = "a red circle"
methods = pytest.mark.parametrize("method", METHODS)


def layer_of(variant, name):
    return variant.denoiser.get_submodule(name)


def own_quantizer(layer):
    """That of a layer's input, whether or not other layers share it."""
    quantizer = layer.quantize_input
    return quantizer.quantizer if isinstance(quantizer, OncePerInput) else quantizer


def error_of(clip, reference) -> float:
    """Of the final latents, relative to their size."""
    mine, exact = clip.latents_by_step[-1], reference.latents_by_step[-1]
    return float((mine - exact).norm() / exact.norm())


def difference(actual, expected) -> float:
    return float((actual - expected).norm() / expected.norm())
