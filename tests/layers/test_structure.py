"""Structures: described, written as JSON, read in any order, rebuilt the same; and refused when they are not right."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from qvd_core.errors import ModelError
from qvd_core.layers.structure import check_values, describe, put_tensor, rebuild, stored_tensors
from qvd_core.recipe import METHODS
from qvd_core.variant import share_structure


def kinds(denoiser):
    return {name: (tuple(t.shape), t.dtype) for name, t in stored_tensors(denoiser).items()}


@pytest.fixture
def structure(named):
    """Of a variant with a piece of every kind of norm, and with shared and logarithmic inputs."""
    return lambda name: json.loads(json.dumps(describe(named(name).denoiser, named(name).clock)))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_described_is_rebuilt(model, named, method):
    variant = named(f"{method}-w4a6")
    text = json.dumps(describe(variant.denoiser, variant.clock), sort_keys=True)  # as diffusers writes it
    before = kinds(model.denoiser)
    empty = share_structure(model.denoiser)
    clock = rebuild(empty, json.loads(text))
    assert kinds(empty) == kinds(variant.denoiser)
    assert list(kinds(empty)) == list(kinds(variant.denoiser))
    assert (None if clock is None else clock.timesteps) == (None if variant.clock is None else variant.clock.timesteps)
    assert json.loads(text) == describe(empty, clock)
    assert [str(m) for m in empty.modules()] == [str(m) for m in variant.denoiser.modules()]
    assert kinds(model.denoiser) == before, "the model has been changed"


def test_rebuilt_tensors_take_no_memory(model, structure):
    empty = share_structure(model.denoiser)
    described = structure("qvd-w4a8")
    rebuild(empty, described)
    own = {
        n: t for n, t in stored_tensors(empty).items() if any(n.startswith(f"{path}.") for path in described["pieces"])
    }
    real = {name for name, t in own.items() if not t.is_meta and t.numel()}
    assert {name.rpartition(".")[2] for name in real} <= {"weight", "bias"}  # norms are still the model's


def test_shared_tensors_are_stored_once(named):
    denoiser = named("qvd-w4a8").denoiser
    stored = stored_tensors(denoiser)
    assert len({id(t.untyped_storage()) for t in stored.values()}) == len(stored)
    assert set(denoiser.state_dict()) > set(stored)


def test_a_filled_structure_is_the_variant(model, named, call, structure):
    variant = named("qvd-w4a8")
    empty = share_structure(model.denoiser)
    rebuild(empty, structure("qvd-w4a8"))
    for name, tensor in stored_tensors(variant.denoiser).items():
        put_tensor(empty, name, tensor)
    assert torch.equal(call(empty), call(variant.denoiser))


SITE = "conv_in"
CHANGES = {
    "no-dictionary": (lambda s: [], "timesteps, pieces should be given"),
    "pieces-missing": (lambda s: {"timesteps": None}, "timesteps, pieces should be given"),
    "superfluous": (lambda s: s | {"code": "import os"}, "timesteps, pieces should be given"),
    "unknown-path": (lambda s: put(s, "conv_inn", s["pieces"][SITE]), "'conv_inn', which UNetMotionModel"),
    "empty-path": (lambda s: put(s, "", s["pieces"][SITE]), "''"),
    "not-a-layer": (lambda s: put(s, "down_blocks.0", s["pieces"][SITE]), "no linear layer or convolution"),
    "unknown-piece": (lambda s: put(s, SITE, {"kind": "os.system"}), "'os.system', which is not known"),
    "no-piece": (lambda s: put(s, SITE, None), "conv_in, conv2d, as None"),
    "unknown-input": (lambda s: put_input(s, {"kind": "subprocess"}), "'subprocess', which this version does not"),
    "input-a-text": (lambda s: put_input(s, "subprocess"), "describes no input of conv_in"),
    "nine-bits": (lambda s: put_field(s, "weight_bits", 9), "9 bits"),
    "one-bit": (lambda s: put_field(s, "weight_bits", 1), "1 bits"),
    "bits-true": (lambda s: put_field(s, "weight_bits", True), "weight_bits = True"),
    "bits-a-text": (lambda s: put_field(s, "weight_bits", "8"), "weight_bits = '8'"),
    "bits-huge": (lambda s: put_field(s, "weight_bits", 10**30), "weight_bits = 10000"),
    "no-symmetry": (lambda s: put_field(s, "symmetric", None), "describes conv_in with 8 bits"),
    "split-beyond": (lambda s: put_field(s, "split", 4), "splits the 4 input channels of conv_in at 4"),
    "field-missing": (lambda s: put_field(s, "bias"), "where weight_bits, symmetric, split, bias"),
    "grids-zero": (lambda s: put_input(s, static(0)), "grids = 0"),
    "grids-many": (lambda s: put_input(s, static(10**9)), "grids = 1000000000"),
    "input-bits": (lambda s: put_input(s, static(1, 17)), "activation bits = 17"),
    "by-step": (lambda s: put_input(s, static(2) | {"kind": "static_per_step"}), "each of 2 steps, and its sampler 0"),
    "shared-with-nobody": (lambda s: put_input(s, {"kind": "shared", "with": "x"}), "share the input of x"),
    "shared-twice": (
        lambda s: put_input(s, {"kind": "once_per_input", "readers": 2, "quantizer": {"kind": "once_per_input"}}),
        "twice over",
    ),
    "unknown-form": (
        lambda s: put_input(
            s, {"kind": "logarithmic", "levels": 7, "form": "__import__", "midpoint": False, "double": True}
        ),
        "unknown form '__import__'",
    ),
    "tabulated-convolution": (lambda s: put(s, SITE, {"kind": "tabulated"}), "without a sampler's steps"),
    "norm-without-positions": (
        lambda s: put(s, "conv_norm_out", {"kind": "norm", "positioned": True, "folded": False}),
        "conv_norm_out as a norm with positions",
    ),
    "no-norm": (
        lambda s: put(s, "conv_in", {"kind": "norm", "positioned": False, "folded": True}),
        "conv_in as a norm",
    ),
    "timesteps-twice": (lambda s: s | {"timesteps": [1.0, 1.0]}, "timesteps are not different"),
    "timesteps-none": (lambda s: s | {"timesteps": []}, "timesteps are not different"),
    "timesteps-nan": (lambda s: s | {"timesteps": [float("nan")]}, "timesteps are not different"),
    "timesteps-text": (lambda s: s | {"timesteps": ["0"]}, "timesteps are not different"),
}


def static(grids: int, bits: int = 8) -> dict:
    return {"kind": "static_per_tensor", "bits": bits, "symmetric": False, "grids": grids}


def put(structure: dict, path: str, piece: object) -> dict:
    structure["pieces"][path] = piece
    return structure


def put_input(structure: dict, described: object) -> dict:
    structure["pieces"][SITE]["input"] = described
    return structure


def put_field(structure: dict, field: str, *value: object) -> dict:
    del structure["pieces"][SITE][field]
    structure["pieces"][SITE].update(zip((field,), value, strict=False))
    return structure


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_not_right_is_refused_with_the_reason(model, structure, case):
    change, reason = CHANGES[case]
    with pytest.raises(ModelError) as caught:
        rebuild(share_structure(model.denoiser), change(structure("minmax-w8a8")))
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("conv_in.scales", float("nan"), "contains NaN or infinite values"),
        ("conv_in.scales", float("inf"), "contains NaN or infinite values"),
        ("conv_in.scales", 0.0, "scales that are not positive"),
        ("conv_in.scales", -1.0, "scales that are not positive"),
        ("conv_in.quantize_input.scale", 0.0, "scales that are not positive"),
        ("conv_in.bias", float("nan"), "contains NaN or infinite values"),
    ],
)
def test_numbers_no_variant_has_are_refused(named, name, value, reason):
    denoiser = named("minmax-w8a8").denoiser
    tensors = stored_tensors(denoiser)
    check_values(tensors, denoiser)
    tensors[name] = copy.deepcopy(tensors[name]).fill_(value)
    with pytest.raises(ModelError, match=f"{name} contains {reason.removeprefix('contains ')}"):
        check_values(tensors, denoiser)
