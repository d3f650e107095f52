"""What a call takes in memory, beside what is held before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"  # to clear_refs: VmHWM starts anew from what is resident


def transient_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Bytes in use at most during `call`, less those in use before; see `bytes_before_and_at_most`."""
    found = bytes_before_and_at_most(call, device)
    return None if found is None else found[1] - found[0]


def bytes_before_and_at_most(call: Callable[[], Any], device: str) -> tuple[int, int] | None:
    """Bytes in use before `call`, and at most during it.

    On CUDA as its allocator counts. On a CPU as the system counts resident pages, to some 100 kB, after the C library
    has given back what it keeps for later; None where the system does not count a peak (anything but Linux).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return before, torch.cuda.max_memory_allocated()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: 0)  # glibc's own
    try:
        trim(0)
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
        before = _resident()["VmRSS"]
    except OSError:
        return None
    call()
    return before, max(before, _resident()["VmHWM"])


def _resident() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}
