"""What is not computed in integers, and why: told on every machine, with int8 or without."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from qvd_core.device import Device
from qvd_core.engines import cpu_int8
from qvd_core.engines.integer import in_integers
from qvd_core.errors import EngineError
from qvd_core.models.loader import VideoModel


def test_packed_and_compiled_at_once(named, monkeypatch):
    monkeypatch.setattr(cpu_int8, "unavailable", lambda: None)
    with pytest.raises(EngineError, match="cannot be compiled; choose one"):
        in_integers(named("minmax-w8a8"), compiled=True, packed=True)


def test_a_variant_in_integers_is_not_converted_again(named):
    with pytest.raises(EngineError, match="minmax-w8a8 computes in int8 already; pass the simulated"):
        in_integers(replace(named("minmax-w8a8"), engine="int8"))


def test_a_processor_that_would_be_slower_and_wrong(named, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    reason = r"No integer arithmetic here: this CPU has no VNNI .* overflow.* simulated variant"
    with pytest.raises(EngineError, match=reason):
        in_integers(named("minmax-w8a8"))


def test_a_torch_without_kernels(named, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(EngineError, match="this torch has no oneDNN"):
        in_integers(named("minmax-w8a8"))


def test_cuda_without_triton(model, named, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    elsewhere = VideoModel(model.spec, model.pipeline, model.denoiser_name, Device("cuda", "for the test"))
    with pytest.raises(EngineError, match="No integer arithmetic here: Triton is not installed"):
        in_integers(replace(named("minmax-w8a8"), model=elsewhere))
