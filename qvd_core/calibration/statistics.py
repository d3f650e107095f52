"""Calibration statistics: small, keyed to the model and the run that produced them, kept on disk.

Per site, the smallest and largest value of every input channel at every denoising step, over all
prompts. Ranges per tensor, per step or over all steps follow by reduction.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvd_core.errors import CalibrationError
from qvd_core.storage import replacing

FORMAT = "qvd-statistics-1"


@dataclass(frozen=True)
class CalibrationRun:
    """What was run to obtain statistics.

    Attributes:
        model: name of the model; fingerprint: hash of its weights.
        sampler: scheduler class; steps: its number of steps.
        prompts: what was generated, with seeds seed, seed + 1, ...
        frames, height, width, guidance_scale: as in `Settings`.
    """

    model: str
    fingerprint: str
    sampler: str
    steps: int
    prompts: tuple[str, ...]
    seed: int
    frames: int
    height: int
    width: int
    guidance_scale: float


@dataclass(frozen=True, eq=False)
class Statistics:
    """Input ranges of every site.

    Attributes:
        run: where they come from.
        low, high: per site name, fp32 [steps, channels]: extremes of each input channel at each step.
        macs: per site name, multiply-accumulates of one denoiser call (guidance doubles a step's calls
            into one batch, which is counted).
    """

    run: CalibrationRun
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    macs: dict[str, int]

    def tensor_range(self, site: str) -> tuple[Tensor, Tensor]:
        """(low, high) of the whole input over all steps and channels, two scalars."""
        return self.low[site].min(), self.high[site].max()

    def check_model(self, name: str, fingerprint: str) -> None:
        """Refuse to serve a model these statistics were not made on.

        Raises:
            CalibrationError: naming both.
        """
        if self.run.fingerprint != fingerprint:
            raise CalibrationError(
                f"These statistics were made on {self.run.model} ({self.run.fingerprint}), not on"
                f" {name} ({fingerprint}); calibrate again."
            )

    def save(self, path: Path) -> None:
        """Write to `path` (safetensors), whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        from safetensors.torch import save

        tensors = {f"low/{name}": t.contiguous() for name, t in self.low.items()}
        tensors |= {f"high/{name}": t.contiguous() for name, t in self.high.items()}
        metadata = {"format": FORMAT, "run": json.dumps(asdict(self.run)), "macs": json.dumps(self.macs)}
        # Not save_file: its errors do not tell a full disk from a programming error.
        with replacing(path) as scratch:
            scratch.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CalibrationError: the file is absent, damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CalibrationError(f"{path} does not hold calibration statistics ({FORMAT}).")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            values = json.loads(metadata["run"])
            run = CalibrationRun(**{**values, "prompts": tuple(values["prompts"])})
            macs = json.loads(metadata["macs"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path} is not a readable statistics file: {error}") from error
        low = {k.removeprefix("low/"): t for k, t in tensors.items() if k.startswith("low/")}
        high = {k.removeprefix("high/"): t for k, t in tensors.items() if k.startswith("high/")}
        return cls(run, low, high, macs)


class RangeObserver:
    """Streams the input ranges of one layer; keeps no activation."""

    def __init__(self, site: str, kind: str, steps: int, channels: int):
        self.site = site
        self.channel_axis = -1 if kind == "linear" else 1
        self.low = torch.full((steps, channels), float("inf"))
        self.high = torch.full((steps, channels), float("-inf"))

    def observe(self, x: Tensor, step: int) -> None:
        """Take in one input of the layer.

        Raises:
            CalibrationError: it contains NaN or infinite values.
        """
        rows = x.detach().movedim(self.channel_axis, -1).flatten(0, -2).float()
        low, high = torch.aminmax(rows, dim=0)
        low, high = low.cpu(), high.cpu()
        # NaN propagates through aminmax, so the extremes tell about every value.
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(
                f"The input of {self.site} contains NaN or infinite values at step {step + 1};"
                " the model itself is broken at this precision."
            )
        torch.minimum(self.low[step], low, out=self.low[step])
        torch.maximum(self.high[step], high, out=self.high[step])
