"""How the sides of the inference benchmark are built, measured and put in relation, on the tiny model."""

from __future__ import annotations

import pytest
import torch

from qvd_core.benchmarks import inference
from qvd_core.benchmarks.inference import benchmark_inference
from qvd_core.engines import cpu_int8
from qvd_core.errors import EngineError
from qvd_core.recipe import get_recipe

needs_int8 = pytest.mark.skipif(bool(cpu_int8.unavailable()), reason=str(cpu_int8.unavailable()))
CHOICES = {
    "recipes": (get_recipe("minmax-w8a8"), get_recipe("qvd-w8a8")),
    "against": ("fp32", "bf16"),
    "repeats": 1,
    "compiled": False,
}


@needs_int8
def test_sides_measured_one_at_a_time_are_compared_with_the_int8_of_their_own_rounds(model, statistics):
    result = benchmark_inference(model, statistics, one_at_a_time=True, **CHOICES)
    sides = result["sides"]
    assert set(sides) == {
        *("fp32", "fp32, channels last", "bf16", "bf16, channels last"),
        *("int8, minmax-w8a8", "int8, qvd-w8a8"),
    }
    for kind, name in (("fp32", "ratio_int8_to_fp32"), ("bf16", "ratio_int8_to_best_bf16")):
        own = [side["int8_seconds"] / side["seconds"] for side in sides.values() if side["kind"] == kind]
        assert result[name] == max(own)


@needs_int8
def test_sides_measured_one_at_a_time_run_in_rounds_of_two(model, statistics, monkeypatch):
    held: list[int] = []
    alternate = inference.alternate

    def counting(calls, repeats):
        held.append(len(calls))
        return alternate(calls, repeats)

    monkeypatch.setattr(inference, "alternate", counting)
    benchmark_inference(model, statistics, one_at_a_time=True, **CHOICES)
    assert held == [2] * 5  # every side with the last int8 side
    benchmark_inference(model, statistics, **CHOICES)
    assert held[5:] == [6]


@needs_int8
@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_side_that_cannot_be_built_is_left_out_with_its_reason(model, statistics, monkeypatch, one_at_a_time):
    def broken(model, dtype, channels_last):
        if channels_last:
            raise RuntimeError("no such format\nand a long trace")
        return in_format(model, dtype, channels_last)

    in_format = inference.in_format
    monkeypatch.setattr(inference, "in_format", broken)
    result = benchmark_inference(model, statistics, one_at_a_time=one_at_a_time, **CHOICES)
    reason = "no such format"
    assert result["left_out"] == {"fp32, channels last": reason, "bf16, channels last": reason}
    assert "bf16" in result["sides"]


@needs_int8
def test_without_anything_to_compare_with_int8_is_measured_alone(model, statistics):
    only = CHOICES | {"against": (), "recipes": CHOICES["recipes"][:1]}
    result = benchmark_inference(model, statistics, one_at_a_time=True, **only)
    assert list(result["sides"]) == ["int8, minmax-w8a8"]
    assert result["sides"]["int8, minmax-w8a8"]["seconds"] > 0
    assert result["ratio_int8_to_fp32"] is None


def test_a_processor_without_int8_is_told_before_anything_is_measured(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    stages: list[str] = []
    with pytest.raises(EngineError, match="No integer arithmetic here: this CPU has no VNNI"):
        benchmark_inference(model, on_stage=stages.append)
    assert stages == []


@needs_int8
@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_without_any_int8_side_it_says_why(model, statistics, monkeypatch, one_at_a_time):
    def unavailable(*_, **__):
        raise EngineError("no VNNI here")

    monkeypatch.setattr(inference, "in_integers", unavailable)
    with pytest.raises(EngineError, match=r"Nothing is computed in int8 here\. .*int8, minmax-w8a8: no VNNI here"):
        benchmark_inference(model, statistics, one_at_a_time=one_at_a_time, **CHOICES)
