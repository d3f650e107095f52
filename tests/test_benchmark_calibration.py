"""What calibration costs: how peak memory is measured. The whole benchmark is run in test_cli.py."""

from __future__ import annotations

import os
import signal

import pytest

from qvd_core.benchmarks import calibration
from qvd_core.errors import OutOfMemory


def end_as_the_kernel_does(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_measuring_process_that_is_killed(model, monkeypatch):
    """The kernel kills one of two processes that do not fit; waiting for its answer would never end."""
    monkeypatch.setattr(calibration, "_peak_of_fresh_process", end_as_the_kernel_does)
    with pytest.raises(OutOfMemory, match="measured the peak memory of sampling was ended from outside"):
        calibration._peak_memory("sampling", model, ["a red circle"])
