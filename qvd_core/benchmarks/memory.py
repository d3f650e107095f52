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
    """Bytes in use at most during `call`, less those in use before; results that are dropped count, weights do not.

    On CUDA as its allocator counts. On a CPU as the system counts resident pages, to some 100 kB, after the C library
    has given back what it keeps for later; None where the system does not count a peak (anything but Linux).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: 0)  # glibc's own
    try:
        trim(0)
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
        before = _resident()["VmRSS"]
        call()
        return max(0, _resident()["VmHWM"] - before)
    except OSError:
        return None


def _resident() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")}
