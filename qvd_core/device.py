"""Which device runs the model, and why: the reason is shown wherever the device is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qvd_core.errors import ModelError


@dataclass(frozen=True)
class Device:
    """A torch device string ("cpu", "cuda") with the reason it was chosen, in words."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def pick_device(requested: str = "auto") -> Device:
    """The requested device, or CUDA when there is one and the CPU otherwise.

    Raises:
        ModelError: `requested` is not "auto", "cpu" or "cuda", or CUDA is asked for and absent.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise ModelError(f"Unknown device {requested!r}; choose auto, cpu or cuda.")
    if requested != "cpu" and torch.cuda.is_available():
        return Device("cuda", torch.cuda.get_device_name())
    if requested == "cuda":
        raise ModelError("CUDA was asked for, but torch finds no CUDA device; use --device cpu.")
    threads = torch.get_num_threads()
    reason = "as asked" if requested == "cpu" else "no CUDA device found"
    return Device("cpu", f"{reason}; {threads} thread{'s' if threads != 1 else ''}")
