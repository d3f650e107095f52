"""What a call takes in memory beside what was there before, as the system counts it."""

from __future__ import annotations

import pytest
import torch

from qvd_core.benchmarks import memory
from qvd_core.benchmarks.memory import transient_bytes

MB = 10**6

counted = pytest.mark.skipif(transient_bytes(lambda: None, "cpu") is None, reason="this system counts no peak")


@counted
@pytest.mark.parametrize("megabytes", [50, 200])
def test_what_is_dropped_again_counts(megabytes):
    assert transient_bytes(lambda: float(torch.ones(megabytes * MB // 4).sum()), "cpu") / MB == pytest.approx(
        megabytes, abs=5
    )


@counted
def test_what_is_held_before_does_not_count():
    held = torch.ones(100 * MB // 4)
    assert transient_bytes(lambda: held.sum(), "cpu") < 5 * MB


@counted
def test_two_calls_do_not_add_up():
    def call() -> None:
        torch.ones(100 * MB // 4)

    first, second = (transient_bytes(call, "cpu") for _ in range(2))
    assert first == pytest.approx(second, abs=5 * MB)


def test_a_system_that_counts_no_peak_is_told_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "absent")
    assert transient_bytes(lambda: None, "cpu") is None
