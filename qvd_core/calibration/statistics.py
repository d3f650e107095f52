"""Calibration statistics: small, keyed to the model and the run that produced them, kept on disk.

Per site, the smallest and largest value of every input channel at every denoising step over all
prompts, the same of every frame, and a few tokens of every step as they were. Ranges per tensor, per
step or over all steps follow by reduction; what needs whole values, such as an error, by sampling.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from qvd_core.errors import CalibrationError
from qvd_core.storage import replacing

FORMAT = "qvd-statistics-2"
TOKENS = 4  # kept of every step and site
SEQUENCES = 1
LARGEST_HALF = 6e4


@dataclass(frozen=True)
class CalibrationRun:
    """What was run to obtain statistics.

    Attributes:
        model: name of the model; fingerprint: hash of its weights.
        sampler: scheduler class; steps: its number of steps.
        prompts: what was generated, with seeds seed, seed + 1, ...
        frames, height, width, guidance_scale: as in `Settings`.
        seconds: measured time of the run.
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
    seconds: float


@dataclass(frozen=True, eq=False)
class Statistics:
    """Inputs of every site. Sites that read the same tensor share the same entries.

    Attributes:
        run: where they come from.
        low, high: per site name, fp32 [steps, channels]: extremes of each input channel at each step.
        frame_low, frame_high: fp32 [steps, frames]: extremes of each frame; only of sites that see the
            frames of a clip one by one, along their leading axis.
        tokens: fp32 [steps, samples, length, channels]: random tokens of each step (`length` 1); of
            temporal attention whole sequences of `length` = frames, so that the attention can be computed.
        token_frames: [steps, samples], the frame each token is of; as `frame_low`.
        macs: multiply-accumulates of one denoiser call (guidance doubles a step's calls into one batch,
            which is counted).
        counts: how many tokens were seen in all; those kept stand for them.
    """

    run: CalibrationRun
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    frame_low: dict[str, Tensor]
    frame_high: dict[str, Tensor]
    tokens: dict[str, Tensor]
    token_frames: dict[str, Tensor]
    macs: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)

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

        tensors: dict[str, Tensor] = {}
        shared: dict[str, str] = {}  # entries that are another entry's tensor
        names: dict[int, str] = {}
        for kind in ENTRIES:
            for site, tensor in getattr(self, kind).items():
                key = f"{kind}/{site}"
                if id(tensor) in names:
                    shared[key] = names[id(tensor)]
                    continue
                names[id(tensor)] = key
                tensors[key] = _compact(tensor) if kind == "tokens" else tensor.contiguous()
        metadata = {
            "format": FORMAT,
            "run": json.dumps(asdict(self.run)),
            "macs": json.dumps(self.macs),
            "counts": json.dumps(self.counts),
            "shared": json.dumps(shared),
        }
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
                found = metadata.get("format", "no statistics")
                if found != FORMAT:
                    raise CalibrationError(
                        f"{path} does not hold calibration statistics of this version ({FORMAT}) but {found};"
                        " calibrate again."
                    )
                tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
            values = json.loads(metadata["run"])
            run = CalibrationRun(**{**values, "prompts": tuple(values["prompts"])})
            macs, counts = json.loads(metadata["macs"]), json.loads(metadata["counts"])
            tensors |= {key: tensors[owner] for key, owner in json.loads(metadata["shared"]).items()}
            entries: dict[str, dict[str, Tensor]] = {kind: {} for kind in ENTRIES}
            for key, tensor in tensors.items():
                kind, _, site = key.partition("/")
                entries[kind][site] = tensor
            if not entries["low"].keys() == entries["high"].keys() == entries["tokens"].keys():
                raise ValueError("some sites lack their extremes or tokens")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path} is not a readable statistics file: {error}") from error
        return cls(run, macs=macs, counts=counts, **entries)


ENTRIES = ("low", "high", "frame_low", "frame_high", "tokens", "token_frames")


def _compact(tokens: Tensor) -> Tensor:
    """In half precision where nothing is lost: `InputObserver` rounds to it what it can hold."""
    return (tokens.half() if tokens.abs().max() < LARGEST_HALF else tokens).contiguous()


class InputObserver:
    """Streams extremes and a few tokens of one layer's input; keeps no activation.

    Args:
        site: its name, for errors and as the seed of which tokens are kept.
        kind: "linear", or a convolution.
        steps, channels, frames: of the run and the layer.
        by_frame: whether the leading axis is samples x frames.
        sequences: whether to keep whole sequences [length, channels] instead of single tokens.
    """

    def __init__(
        self,
        site: str,
        kind: str,
        steps: int,
        channels: int,
        frames: int = 1,
        by_frame: bool = False,
        sequences: bool = False,
    ):
        self.site, self.linear, self.by_frame, self.sequences = site, kind == "linear", by_frame, sequences
        self.low = torch.full((steps, channels), float("inf"))
        self.high = torch.full((steps, channels), float("-inf"))
        self.frame_low = torch.full((steps, frames), float("inf"))
        self.frame_high = torch.full((steps, frames), float("-inf"))
        count = SEQUENCES if sequences else TOKENS
        self.tokens = torch.zeros(steps, count, frames if sequences else 1, channels)
        self.token_frames = torch.zeros(steps, count)
        self.count = 0
        self._calls = torch.zeros(steps, dtype=torch.long)  # of the clip now observed
        self._clip = 0
        self._random = torch.Generator().manual_seed(crc32(site.encode()))

    def observe(self, x: Tensor, step: int, clip: int = 0, clips: int = 1) -> None:
        """Take in one input of the layer, of clip `clip` of `clips`, which share the tokens evenly.

        Raises:
            CalibrationError: it contains NaN or infinite values.
        """
        x = x.detach()
        self.count += x.numel() // self.low.shape[1]
        by_sample = [extreme.float() for extreme in _extremes(x, self.linear)]
        low, high = by_sample[0].amin(0).cpu(), by_sample[1].amax(0).cpu()
        # NaN propagates through the extremes, so they tell about every value.
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(
                f"The input of {self.site} contains NaN or infinite values at step {step + 1};"
                " the model itself is broken at this precision."
            )
        torch.minimum(self.low[step], low, out=self.low[step])
        torch.maximum(self.high[step], high, out=self.high[step])
        frames = self.frame_low.shape[1]
        if self.by_frame:
            low, high = by_sample[0].amin(1).view(-1, frames).amin(0), by_sample[1].amax(1).view(-1, frames).amax(0)
            torch.minimum(self.frame_low[step], low.cpu(), out=self.frame_low[step])
            torch.maximum(self.frame_high[step], high.cpu(), out=self.frame_high[step])
        if clip != self._clip:
            self._clip = clip
            self._calls.zero_()
        self._calls[step] += 1
        for number in range((clip - step) % clips, self.tokens.shape[1], clips):
            # Of several calls in a step, such as with and without the prompt, each is kept equally often.
            place, luck = torch.rand(2, generator=self._random).tolist()
            if luck * int(self._calls[step]) < 1:
                self._keep(x, step, number, place)

    def _keep(self, x: Tensor, step: int, number: int, place: float) -> None:
        if self.sequences:
            token = x[int(place * len(x))]
        elif self.linear:
            tokens = x.reshape(-1, x.shape[-1])
            token = tokens[int(place * len(tokens))]
        else:
            pixels = x[0, 0].numel()
            sample, pixel = divmod(int(place * len(x) * pixels), pixels)
            token = x[sample].flatten(1)[:, pixel]
        token = token.float().cpu()
        # As a file keeps it, so that statistics from disk give the same variant.
        self.tokens[step, number] = token.half().float() if token.abs().max() < LARGEST_HALF else token
        if self.by_frame:
            self.token_frames[step, number] = int(place * len(x)) % self.frame_low.shape[1]


def _extremes(x: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every sample and channel, 2 x [N, C].

    Two passes: torch.aminmax along an axis is twenty times slower than both of these on a CPU.
    """
    if linear:
        x = x.reshape(len(x) if x.dim() > 2 else 1, -1, x.shape[-1])
        return x.amin(1), x.amax(1)
    axes = tuple(range(2, x.dim()))
    return x.amin(axes), x.amax(axes)
